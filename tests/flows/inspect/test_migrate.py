"""A workspace of an earlier program is refused with the command that brings it up to date, which may die anywhere.

`layout_1.tar.xz` was made by that program: a run of two iterations, a fork, a replay and two evaluations of small size,
without checkpoints, and one prepared split.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import flows.inspect.migrate
from flows.app import run_command
from flows.inspect.migrate import migrate
from schemas.records.ledger import StageKey
from schemas.records.run_kind import EvaluationKind, ForkKind, ReplayKind, TrainingKind
from schemas.records.score import Score
from storage.errors import WorkspaceError
from storage.runs.artifacts import ArtifactStore
from storage.storage import Storage
from storage.workspace import Workspace

ARCHIVE = Path(__file__).with_name("layout_1.tar.xz")


class Died(BaseException):
    """What a kill does to the process."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    unpack(tmp_path / "workspace")
    return tmp_path / "workspace"


def unpack(folder: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")


def migrated(folder: Path) -> str:
    """Migrate and return what was printed."""
    console = Console(file=io.StringIO(), width=200)
    migrate(folder, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def files(folder: Path) -> dict[str, str]:
    """Return the hash of every file of runs and data sets."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("artifacts", "questions", "layout.json")
        for path in sorted([folder / part, *(folder / part).rglob("*")])
        if path.is_file()
    }


@pytest.mark.parametrize(
    "arguments",
    [["runs"], ["show", "first"], ["sql", "SELECT 1"], ["resume", "first"], ["db", "check"], ["db", "rebuild"],
     ["train", "tiny"], ["replay", "first", "--iterations", "1"], ["evaluate", "--run", "first"]],
    ids=" ".join,
)  # fmt: skip
def test_every_other_command_names_the_one_that_helps(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(folder)
    assert run_command([*arguments, "--workspace", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "has files of layout 1, this program writes layout 2; bring it up to date with: sdsearch db migrate" in said
    assert said.count("\n") == 1
    assert files(folder) == before


def test_everything_of_it_can_be_read_afterwards(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["db", "migrate", "--workspace", str(folder)]) == 0
    assert "runs: 5, attempts at stages: 27, prepared splits: 1" in capsys.readouterr().out
    storage = Storage(Workspace.open(folder))
    kinds = {record.run: record.kind for record in storage.ledger.list_runs()}
    assert kinds == {
        "first": TrainingKind(),
        "branch": ForkKind(source="first", first_iteration=3),
        "whatif": ReplayKind(source="first", first=1, last=2),
        "exam": EvaluationKind(source="first", version=2),
        "plain": EvaluationKind(source=None, version=0),
    }
    for run, iteration in (("first", 1), ("first", 2), ("branch", 3), ("whatif", 1)):
        done = storage.ledger.done(StageKey(run=run, iteration=iteration, stage="score"))
        assert done is not None
        (output,) = done.outputs
        storage.artifacts.verify(output)
        assert "stage=score" in output.path
        for score in storage.artifacts.read_records(output, Score):
            assert sum(map(sum, score.golden)) == score.num_golden_hits
            assert sum(map(len, score.golden)) == score.num_hits
            assert score.parts[0].value == score.f1
    assert not list(folder.rglob("*persist*"))
    (prepared,) = storage.question_sets.prepared()
    assert prepared.report.location == "world"  # type: ignore[union-attr]
    figures = storage.database.query("SELECT * FROM v_replays WHERE run = 'whatif'")
    assert figures.num_rows
    assert run_command(["show", "whatif", "--workspace", str(folder)]) == 0
    assert migrated(folder).endswith("layout 2\n")


def counted(monkeypatch: pytest.MonkeyPatch, dies_at: int) -> list[str]:
    """Have the n-th step of a migration that changes a file die before it, and return the list of those that began."""
    steps: list[str] = []

    def dying(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            steps.append(name)
            if len(steps) == dies_at:
                raise Died
            return real(*arguments, **options)

        return step

    module = flows.inspect.migrate
    monkeypatch.setattr(module, "write_json_atomic", dying("json", module.write_json_atomic))
    monkeypatch.setattr(module, "remove", dying("remove", module.remove))
    monkeypatch.setattr(module, "rebuild_of", dying("rebuild", lambda storage, console: None))
    monkeypatch.setattr(ArtifactStore, "write_records", dying("records", ArtifactStore.write_records))
    monkeypatch.setattr(Workspace, "claim", dying("claim", Workspace.claim))
    return steps


def test_one_that_died_anywhere_is_finished_by_the_same_command(tmp_path: Path) -> None:
    unpack(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        steps = counted(patch, dies_at=0)
        migrated(tmp_path / "whole")
    wanted = files(tmp_path / "whole")
    assert set(steps) == {"json", "records", "rebuild", "claim", "remove"}
    for number in range(1, len(steps) + 1):
        folder = tmp_path / f"died-{number}"
        unpack(folder)
        with pytest.MonkeyPatch.context() as patch:
            counted(patch, dies_at=number)
            with pytest.raises(Died):
                migrated(folder)
        if "claim" not in steps[: number - 1]:
            with pytest.raises(WorkspaceError, match="sdsearch db migrate"):
                Workspace.open(folder)
        with pytest.MonkeyPatch.context() as patch:
            counted(patch, dies_at=0)
            migrated(folder)
        assert files(folder) == wanted, f"died at step {number}, {steps[number - 1]}"


def test_scores_that_are_damaged_are_told_of_and_count_as_not_done(folder: Path) -> None:
    path = folder / "artifacts/run=first/iteration=00002/stage=persist/scores.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    said = migrated(folder)
    assert "left out: score of iteration 2 of run 'first': " in said
    ledger = Storage(Workspace.open(folder)).ledger
    assert ledger.done(StageKey(run="first", iteration=2, stage="score")) is None
    assert ledger.done(StageKey(run="first", iteration=1, stage="score")) is not None


def test_a_newer_layout_is_refused_and_stays(folder: Path) -> None:
    (folder / "layout.json").write_text(json.dumps({"layout": 3}))
    before = files(folder)
    for open_it in (Workspace.open, migrated):
        with pytest.raises(WorkspaceError, match=r"has files of layout 3, .* use the program that made it"):
            open_it(folder)
    assert files(folder) == before
