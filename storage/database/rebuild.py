"""The whole database again from the files: beside the former one first, then in its place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from storage.database.connection import Database
from storage.database.sync import DatabaseSync, RowsOf
from storage.disk.files import is_temporary, locked, make_folder, remove, sync, temporary_name
from storage.runs.ledger import Ledger
from storage.runs.lock import RunLock
from storage.workspace import Workspace

IndexQuestionSets = Callable[[Database], tuple[int, tuple[str, ...]]]
"""Puts every prepared split into a database; returns how many, and what could not be read and why."""


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuilt database holds, and where the former one is kept when something could not be made again."""

    num_runs: int
    num_attempts: int
    num_question_sets: int
    left_out: tuple[str, ...]
    former: Path | None


def rebuild_database(
    workspace: Workspace, ledger: Ledger, index_question_sets: IndexQuestionSets, rows_of: RowsOf
) -> Rebuilt:
    """Make the database again from the files of all runs and data sets and put it in place of whatever is there.

    Raises RunLockedError while a process works on one of the runs, since its files change. A process that reads the
    former file goes on reading that.
    """
    runs = [record.run for record in ledger.list_runs()]
    with ExitStack() as locks:
        for run in runs:
            locks.enter_context(RunLock(workspace, run))
        locks.enter_context(locked(workspace.questions_lock))
        _remove_leftovers(workspace)
        folder = workspace.root / temporary_name("rebuild")
        try:
            make_folder(folder)
            database = Database(workspace, path=folder / workspace.database.name)
            index = DatabaseSync(database, ledger, rows_of)
            for run in runs:
                index.catch_up(run)
            num_sets, questions_left_out = index_question_sets(database)
            (attempts,) = database.query("SELECT count(*) AS num FROM stages")["num"].to_pylist()
            database.checkpoint()
            database.close()
            left_out = (*index.left_out.values(), *questions_left_out)
            former = _put_in_place(database.path, workspace.database, keep_former=bool(left_out))
        finally:
            remove(folder)
    return Rebuilt(len(runs), attempts, num_sets, left_out, former)


def _put_in_place(new: Path, location: Path, keep_former: bool) -> Path | None:
    log, former = _log_of(location), location.with_name(f"former-{location.name}")
    keep_former = keep_former and location.exists()
    sync(new)
    if keep_former:
        _log_of(former).unlink(missing_ok=True)
        location.rename(former)
        if log.exists():
            log.rename(_log_of(former))
    # A log that stays would be taken for the new file's.
    log.unlink(missing_ok=True)
    new.replace(location)
    sync(location.parent)
    return former if keep_former else None


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")


def _remove_leftovers(workspace: Workspace) -> None:
    """Remove what a rebuild that died left; the caller holds the locks that let one in at a time."""
    for path in workspace.root.glob(".rebuild.*"):
        if is_temporary(path):
            remove(path)
