"""`sdsearch db migrate`: brings the files of a workspace that an earlier program made to this program's layout.

Layout 1 called the score stage `persist`; its scores said neither which passages hold a golden answer nor what a reward
is made of. A run's record said in three fields what the run is of, and the report of a prepared data set called its
location a place. New files are written beside the old ones, which are removed last: whatever stops this, do it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
from pydantic import ValidationError
from rich.console import Console

from flows.console.errors import UserError
from flows.console.terminal import print_line
from flows.inspect.db import rebuild_of
from flows.settings.load import stored_settings
from schemas.paths import local_path
from schemas.records.ledger import ArtifactRef, RunRecord, StageHistory, StageKey, StageRecord
from schemas.records.question_set import PreparedSet
from schemas.records.rollout import Group
from schemas.records.run_kind import EvaluationKind, ForkKind, ReplayKind, RunKind, TrainingKind
from schemas.records.score import Score
from sdsearch.credit.scoring import score_groups
from storage.database.sync import count_rows
from storage.disk.files import locked, remove, write_json_atomic
from storage.errors import DamagedArtifactError, StorageError
from storage.runs.ledger import finish
from storage.runs.lock import RunLock
from storage.storage import Storage
from storage.workspace import LAYOUT, RUN_FILE, STAGE_FILE, Workspace

_FORMER_STAGE: Final = "stage=persist"
_STAGE: Final = "stage=score"
_COMPARED: Final = ("rollout_id", "group_id", "em", "f1", "valid_format", "num_hits", "reward", "advantage")


def migrate(folder: Path, console: Console) -> None:
    """Bring a workspace up to date, and print what was done; RunLockedError while a process works on one of its runs.

    Raises UserError for a folder without runs and data sets, and for a run whose record cannot be read.
    """
    workspace = Workspace(local_path(folder).resolve())
    layout = workspace.layout
    if layout is None:
        raise UserError(f"the workspace {workspace.root} holds no runs and no data sets; name another with --workspace")
    if layout > LAYOUT:
        workspace.check_layout()
    migration = Migration(Storage(workspace))
    with console.status("writing the files anew"):
        changed = migration.write_files()
    for reason in migration.left_out:
        print_line(console, f"left out: {reason}")
    if layout < LAYOUT:
        rebuild_of(migration.storage, console)
        workspace.claim()
    for former in _former_folders(workspace):
        remove(former)
    print_line(console, f"workspace {workspace.root}: layout {LAYOUT}{f', {changed} files' if changed else ''}")


@dataclass
class Migration:
    """Writes the files of layout 2; `left_out` says what could not be brought over."""

    storage: Storage
    left_out: list[str] = field(default_factory=list)

    def write_files(self) -> int:
        """Write what lacks its present form, and return how many files that were."""
        workspace = self.storage.workspace
        runs = [path.parent for path in workspace.run_files()]
        with ExitStack() as locks:
            for folder in runs:
                locks.enter_context(RunLock(workspace, folder.name.removeprefix("run=")))
            locks.enter_context(locked(workspace.questions_lock))
            changed = sum(map(self._write_run, runs))
            for former in _former_folders(workspace):
                changed += self._write_scores(former)
            return changed + sum(map(self._write_set, workspace.set_files()))

    def _write_run(self, folder: Path) -> bool:
        path = folder / RUN_FILE
        values = _read_json(path)
        if "kind" in values:
            return False
        former = {name: values.pop(name, None) for name in ("replay_of", "fork_of", "evaluation_of", "first_iteration")}
        try:
            record = RunRecord.model_validate({**values, "kind": _kind(values, former)})
        except ValidationError as error:
            raise UserError(f"{path} is no record of a run ({str(error).splitlines()[0]})") from error
        settings = stored_settings(record)
        stored = {"settings_json": settings.model_dump_json(), "settings_hash": settings.content_hash()}
        write_json_atomic(path, record.model_copy(update=stored).model_dump(mode="json"), self._root)
        return True

    def _write_scores(self, former: Path) -> int:
        """Write the stage `score` of a folder of the stage `persist`; its `stage.json` is written last."""
        folder = former.with_name(_STAGE)
        if (folder / STAGE_FILE).exists() or not (former / STAGE_FILE).exists():
            return 0
        attempts = [
            self._attempt({**attempt, "stage": "score"}) for attempt in _read_json(former / STAGE_FILE)["attempts"]
        ]
        history = StageHistory(attempts=tuple(attempts)).model_dump(mode="json")
        write_json_atomic(folder / STAGE_FILE, history, self._root)
        return 1

    def _attempt(self, values: dict[str, Any]) -> StageRecord:
        """Return an attempt with its scores written anew; one whose files are damaged is stale, and is done again."""
        if values["status"] != "done":
            return StageRecord.model_validate({**values, "outputs": []})
        record = StageRecord.model_validate({**values, "outputs": []})
        try:
            outputs = [self._rescored(ArtifactRef.model_validate(output)) for output in values["outputs"]]
            done = finish(record, outputs).model_copy(
                update={"finished_at": record.finished_at, "duration_s": record.duration_s}
            )
            return done.model_copy(update={"num_rows": count_rows(done, self.storage.rows_of(done))})
        except StorageError as error:
            self.left_out.append(f"score of iteration {record.iteration} of run '{record.run}': {error}")
            return record.model_copy(update={"status": "stale", "error": str(error)})

    def _rescored(self, former: ArtifactRef) -> ArtifactRef:
        """Write the scores of a stage anew from its rollouts, and return where; all that they held must be the same."""
        artifacts = self.storage.artifacts
        artifacts.verify(former)
        _, run, iteration, _, name = former.path.split("/")
        source = self.storage.ledger.get_run(run.removeprefix("run="))
        key = StageKey(run=source.run, iteration=int(iteration.removeprefix("iteration=")), stage="score")
        sampled = self.storage.ledger.done(key.model_copy(update={"stage": "sample"}))
        if sampled is None:
            raise DamagedArtifactError(f"run '{source.run}' has no rollouts of iteration {key.iteration}")
        groups = [group for output in sampled.outputs for group in artifacts.read_records(output, Group)]
        settings = stored_settings(source)
        scores = score_groups(groups, settings.reward, settings.grpo)
        if (changed := _difference(artifacts.path(former), scores)) is not None:
            raise DamagedArtifactError(f"{artifacts.path(former)}: this program scores otherwise ({changed})")
        return artifacts.write_records(key, name.removesuffix(".parquet"), Score, scores)

    def _write_set(self, path: Path) -> bool:
        values = _read_json(path)
        if "place" not in values["report"]:
            return False
        report = {("location" if name == "place" else name): value for name, value in values["report"].items()}
        prepared = PreparedSet.model_validate({**values, "report": report})
        write_json_atomic(path, prepared.model_dump(mode="json"), self._root)
        return True

    @property
    def _root(self) -> Path:
        return self.storage.workspace.root


def _former_folders(workspace: Workspace) -> Iterator[Path]:
    """Yield the folders of the stage that is called otherwise now."""
    for run in workspace.run_files():
        yield from sorted(run.parent.glob(f"iteration=*/{_FORMER_STAGE}"))


def _kind(values: dict[str, Any], former: dict[str, Any]) -> RunKind:
    """Return what a record of layout 1 said of its kind."""
    first = former["first_iteration"] or 1
    if former["replay_of"] is not None:
        return ReplayKind(source=former["replay_of"], first=first, last=first + values["num_iterations"] - 1)
    if former["evaluation_of"] is not None:
        what, _, name = former["evaluation_of"].partition(":")
        return EvaluationKind(source=name if what == "run" else None, version=values["policy_version"])
    if former["fork_of"] is not None:
        return ForkKind(source=former["fork_of"], first_iteration=first)
    return TrainingKind()


def _difference(path: Path, scores: list[Score]) -> str | None:
    """Return the name of a column in which scores differ from those of a file of layout 1, None where none does."""
    former = pq.ParquetFile(path).read(columns=list(_COMPARED)).to_pydict()
    return next((name for name in _COMPARED if former[name] != [getattr(score, name) for score in scores]), None)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); put it back from a backup, or move its run away") from error
