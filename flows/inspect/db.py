"""`sdsearch db`: makes the database again from the files, and says whether the two agree."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from flows.console.terminal import format_seconds, print_line
from storage.database.check import find_problems
from storage.database.rebuild import rebuild_database
from storage.storage import Storage
from storage.workspace import open_existing


def rebuild(folder: Path, console: Console) -> None:
    """Make the database again from the files of all runs; RunLockedError while a process works on one."""
    rebuild_of(Storage(open_existing(folder, needs_database=False)), console)


def rebuild_of(storage: Storage, console: Console) -> None:
    """As `rebuild`, of a workspace that is open."""
    started = time.monotonic()
    with console.status("reading the files"):
        rebuilt = rebuild_database(storage.workspace, storage.ledger, storage.question_sets.index_all, storage.rows_of)
    seconds = format_seconds(time.monotonic() - started)
    what = f"runs: {rebuilt.num_runs}, attempts at stages: {rebuilt.num_attempts}"
    what += f", prepared splits: {rebuilt.num_question_sets}" if rebuilt.num_question_sets else ""
    print_line(console, f"{storage.workspace.database}: rebuilt from the files ({what}) in {seconds}")
    for reason in rebuilt.left_out:
        print_line(console, f"left out: {reason}")
    if rebuilt.former is not None:
        print_line(console, f"the former database is kept as {rebuilt.former}")


def check(folder: Path, console: Console) -> bool:
    """Print where files, ledger and database do not agree; True when they do."""
    storage = Storage(open_existing(folder))
    with console.status("hashing the files"):
        problems = list(find_problems(storage.ledger, storage.artifacts, storage.database, storage.sync))
        problems += storage.question_sets.problems(storage.database)
    for problem in problems:
        print_line(console, problem)
    what = f"{len(problems)} do not agree" if problems else "files, ledger and database agree"
    print_line(console, f"runs: {len(storage.ledger.list_runs())}; {what}")
    return not problems
