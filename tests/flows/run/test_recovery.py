"""Whatever is damaged, lost or cut off: the run goes on from what is intact and ends as if nothing had happened."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import flows.training.stages.update
from flows.app import run_command
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.loop import train_plain
from schemas.records.ledger import StageKey, StageName
from schemas.records.question import Question
from schemas.settings.root import Settings
from sdsearch.sampling.rollouts import RolloutLoop
from storage.database.connection import Database
from storage.database.tables import table_schemas
from storage.disk.files import sha256_file, temporary_name
from storage.storage import Storage
from storage.workspace import Workspace
from tests.crash.compare import Snapshot, differences, snapshot
from tests.support.holding import held_elsewhere
from tests.support.ledger import attempts_of

RUN = "first"
MICRO = (
    "model.torch_threads=1",
    "data.questions_per_iteration=2",
    "rollout.group_size=2",
    "rollout.questions_per_batch=1",
    "rollout.max_searches=1",
    "rollout.max_new_tokens=16",
    "evaluation.num_questions=1",
    "evaluation.every=3",
    "storage.keep_checkpoints=2",
)


def micro(*overrides: str) -> Settings:
    return load_settings("tiny", [*MICRO, *overrides])


def train(workspace: Path, settings: Settings | None = None, run: str = RUN) -> None:
    train_plain(settings, run, workspace, SilentReporter(), resume=settings is None)


def dump(workspace: Path) -> dict[str, list[str]]:
    """Return every row of every table, all columns; but for the moment at which the database itself was made."""
    database = Database(Workspace(workspace))
    names = set(table_schemas()) - {"workspace"}
    return {name: sorted(map(repr, database.query(f'SELECT * FROM "{name}"').to_pylist())) for name in names}


def attempts(workspace: Path) -> Counter[tuple[int, StageName]]:
    return Counter((r.iteration, r.stage) for r in attempts_of(Storage(Workspace(workspace)).ledger, RUN))


def repeated(workspace: Path) -> set[tuple[int, StageName]]:
    return {stage for stage, count in attempts(workspace).items() if count > 1}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a run of three iterations that nothing befell."""
    folder = tmp_path_factory.mktemp("finished")
    train(folder, micro())
    weights = {sha256_file(path) for path in folder.glob("checkpoints/*/*/model.safetensors")}
    assert len(weights) == 2, "an update that changes nothing would hide what is lost"
    return folder


@pytest.fixture(scope="module")
def expected(finished: Path) -> Snapshot:
    return snapshot(finished)


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(finished, tmp_path / "workspace")


@pytest.mark.parametrize(
    ("files", "again"),
    [
        (("sample/groups.parquet", "hindsight/stage.json"), {"sample"}),
        (
            ("score/scores.parquet", "teacher/distributions.safetensors", "checkpoint"),
            {"score", "teacher", "update"},
        ),
    ],
)
def test_damaged_files_of_the_last_iteration_make_their_stages_run_again_and_no_other(
    files: Sequence[str], again: set[str], workspace: Path, expected: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = workspace / "checkpoints" / f"run={RUN}" / "version=00003" / "model.safetensors"
    of_iteration = workspace / "artifacts" / f"run={RUN}" / "iteration=00003"
    for name in files:
        path = checkpoint if name == "checkpoint" else of_iteration / f"stage={name}"
        flip(path)
    train(workspace)
    assert caplog.text.count(" is damaged") >= len(files)
    assert {stage for _, stage in repeated(workspace)} == again
    assert differences(snapshot(workspace), expected) == []


def test_lost_checkpoints_are_made_again_from_what_was_sampled(
    workspace: Path, expected: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage(Workspace(workspace))
    for version in storage.checkpoints.versions(RUN):
        shutil.rmtree(storage.checkpoints.path(RUN, version))
    train(workspace)
    assert "run 'first' has no intact checkpoint to go on from; all its updates are taken again" in caplog.text
    assert repeated(workspace) == {(iteration, "update") for iteration in (1, 2, 3)}
    assert differences(snapshot(workspace), expected) == []
    before = dump(workspace)
    assert run_command(["db", "check", "--workspace", str(workspace)]) == 0
    assert run_command(["db", "rebuild", "--workspace", str(workspace)]) == 0
    assert dump(workspace) == before


def test_damage_that_nothing_depends_on_is_found_by_the_check(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = StageKey(run=RUN, iteration=1, stage="hindsight")
    flip(Workspace(workspace).stage_folder(key) / "blocks.parquet")
    train(workspace)
    assert repeated(workspace) == set()
    with Database(Workspace(workspace)).transaction() as connection:
        connection.execute("DELETE FROM turns WHERE iteration = 2")
        connection.execute("DELETE FROM stages WHERE iteration = 3 AND stage = 'teacher'")
        connection.execute("UPDATE runs SET run = 'other'")
    assert run_command(["db", "check", "--workspace", str(workspace)]) == 1
    printed = capsys.readouterr().out
    assert "iteration 1, hindsight" in printed
    assert "blocks.parquet is damaged" in printed
    assert "iteration 2, score: the database holds" in printed
    assert "iteration 3, teacher: the database holds another ledger" in printed
    assert "run 'other' is in the database, but not among the files" in printed
    assert "run 'first': the database does not hold its present status" in printed
    assert "5 do not agree" in printed


@pytest.mark.parametrize("damage", ["flipped", "missing", "changed in its log"])
def test_a_damaged_database_is_made_again_and_equals_the_former(
    damage: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = dump(workspace)
    path = Workspace(workspace).database
    if damage == "flipped":
        path.write_bytes(b"garbage" * 5000)
    elif damage == "missing":
        path.unlink()
    else:
        with Database(Workspace(workspace)).transaction() as connection:
            connection.execute("DELETE FROM turns")
        assert path.with_name(f"{path.name}.wal").exists()
    if damage in ("flipped", "missing"):
        assert run_command(["show", RUN, "--workspace", str(workspace)]) == 2
        assert "sdsearch db rebuild" in capsys.readouterr().err
    assert run_command(["db", "rebuild", "--workspace", str(workspace)]) == 0
    assert dump(workspace) == before
    assert run_command(["show", RUN, "--workspace", str(workspace)]) == 0


def test_what_cannot_be_made_again_is_left_out_and_the_former_database_kept(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = StageKey(run=RUN, iteration=1, stage="hindsight")
    flip(Workspace(workspace).stage_folder(key) / "blocks.parquet")
    before = dump(workspace)
    assert run_command(["db", "rebuild", "--workspace", str(workspace)]) == 0
    assert "left out: hindsight of iteration 1 of run 'first'" in capsys.readouterr().out
    assert len(dump(workspace)["stages"]) == len(before["stages"]) - 1
    (workspace / "former-sdsearch.duckdb").replace(Workspace(workspace).database)
    assert dump(workspace) == before


class CutError(Exception):
    """The test ends a stage here."""


class CuttingReporter(SilentReporter):
    """Cuts each of some stages off once, after their first piece."""

    def __init__(self, *stages: str) -> None:
        self.to_cut = set(stages)
        self.stage = ""

    def stage_started(self, key: StageKey) -> None:
        self.stage = f"{key.stage} {key.iteration}"

    def stage_progress(self, done: int, total: int) -> None:
        if self.stage in self.to_cut:
            self.to_cut.remove(self.stage)
            raise CutError


@pytest.fixture
def rolled_out(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that were rolled out, in order."""
    seen: list[str] = []
    roll_out = RolloutLoop.roll_out

    def noting(loop: RolloutLoop, questions: Sequence[Question], **options: Any) -> Any:
        seen.extend(question.key for question in questions)
        return roll_out(loop, questions, **options)

    monkeypatch.setattr(RolloutLoop, "roll_out", noting)
    return seen


def test_a_cut_off_stage_goes_on_with_what_is_missing_of_it(
    expected: Snapshot, tmp_path: Path, rolled_out: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    reporter = CuttingReporter("evaluate 0", "sample 1", "sample 2")
    in_each_attempt = []
    for _ in range(3):
        with pytest.raises(CutError):
            train_plain(micro(), RUN, tmp_path, reporter)
        in_each_attempt.append(list(rolled_out))
        rolled_out.clear()
    (partial,) = tmp_path.rglob("partial-*")
    flip(partial)
    train_plain(micro(), RUN, tmp_path, reporter)
    # Two modes of one dev question; two batches of one training question an iteration.
    (dev,), (again, first), (second, third) = in_each_attempt
    assert again == dev
    assert len({dev, first, second, third}) == 4
    assert f"{partial} is damaged" in caplog.text
    assert rolled_out[0] == third
    assert len(set(rolled_out)) == len(rolled_out) - 1, "but for the two modes of the last evaluation"
    assert repeated(tmp_path) == {(0, "evaluate"), (1, "sample"), (2, "sample")}
    assert differences(snapshot(tmp_path), expected) == []


def test_a_run_ends_while_the_database_is_kept_open_and_its_rows_follow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(Workspace.open(tmp_path))
    assert database.query("SELECT * FROM runs").num_rows == 0
    with held_elsewhere(database.path, "write") as process:
        train(tmp_path, micro("iterations=1", 'evaluation.modes=["greedy"]', "storage.database_deadline_s=0.2"))
    assert caplog.text.count(f"kept open by process {process.pid}") == 2
    assert "the database lacks rows of run 'first'" in caplog.text
    assert database.query("SELECT * FROM stages").num_rows == 0
    assert run_command(["db", "check", "--workspace", str(tmp_path)]) == 1
    train(tmp_path)
    assert run_command(["db", "check", "--workspace", str(tmp_path)]) == 0


def test_what_dead_processes_left_goes_when_the_run_is_resumed(
    workspace: Path, expected: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    opened = Workspace(workspace)
    stage = opened.stage_folder(StageKey(run=RUN, iteration=1, stage="sample"))
    (stage / temporary_name("groups.parquet")).write_bytes(b"half")
    left = opened.checkpoints(RUN) / temporary_name("version=00002")
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    others = opened.run_folder("other") / temporary_name("run.json")
    others.parent.mkdir()
    others.write_text("another process writes it")
    with caplog.at_level(logging.INFO):
        train(workspace)
    assert caplog.text.count("left by a process that died") == 2
    assert others.exists()
    shutil.rmtree(others.parent)
    assert differences(snapshot(workspace), expected) == []


def test_dropout_is_drawn_alike_whatever_was_drawn_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.run.model_files import model_folder

    model = shutil.copytree(model_folder("mini"), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.2}))
    settings = micro(f"model.path={model}", "iterations=1", 'evaluation.modes=["greedy"]')
    train(tmp_path / "whole", settings)
    real = flows.training.stages.update.update_policy

    def fails(*arguments: Any, **options: Any) -> Any:
        yield from real(*arguments, **options)
        raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(flows.training.stages.update, "update_policy", fails)
        with pytest.raises(CutError):
            train(tmp_path / "cut", settings)
    train(tmp_path / "cut")
    assert repeated(tmp_path / "cut") == {(1, "update")}
    assert differences(snapshot(tmp_path / "cut"), snapshot(tmp_path / "whole")) == []
