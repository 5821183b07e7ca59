"""Replays of a short run: what is adopted, what is computed, and that the numbers are the method's own."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import flows.replay.work
import flows.training.stages.update
import sdsearch.credit.retries
from flows.app import run_command
from flows.console.errors import UserError
from flows.replay.launch import start_replay
from flows.run.model_files import model_folder
from flows.run.perform import StageRunner
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain
from flows.training.trainer import Trainer
from schemas.records.ledger import StageKey, StageRecord
from schemas.records.rollout import Group
from schemas.records.score import Score
from schemas.records.teacher import QueryCredit
from sdsearch.credit.teacher import TeacherSettings, compute_targets
from sdsearch.model.policy import load_model, load_tokenizer
from storage.database.stage_rows import StageRowsReader, file_of
from storage.storage import Storage
from tests.golden.cases import make_blocks
from tests.support.ledger import attempts_of

SOURCE = [
    "iterations=2",
    "data.questions_per_iteration=2",
    "rollout.group_size=3",
    "rollout.max_searches=1",
    "update.rollouts_per_step=256",
    "evaluation.num_questions=1",
    "evaluation.every=9",
    "evaluation.modes=['greedy']",
    "model.torch_threads=1",
]
STAGES = ("sample", "score", "hindsight", "teacher")
CORRECT = "queries of CORRECT rollouts"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations, the first of them without a teacher, and a short one of plain GRPO.

    Every other rollout counts as right, so that every group has both outcomes.
    """
    folder = tmp_path_factory.mktemp("workspace")
    real = sdsearch.credit.retries.score_groups

    def mixed(*arguments: Any) -> list[Score]:
        return [score.model_copy(update={"f1": float(place % 2)}) for place, score in enumerate(real(*arguments))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdsearch.credit.retries, "score_groups", mixed)
        train_plain(load_settings("tiny", SOURCE), "first", folder, SilentReporter())
        plain = ["distillation.enabled=false", "iterations=1"]
        train_plain(load_settings("tiny", [*SOURCE, *plain]), "grpo", folder, SilentReporter())
    return folder


@pytest.fixture
def storage(workspace: Path) -> Storage:
    return open_storage(workspace)


@pytest.fixture(autouse=True)
def nothing_is_sampled_or_trained(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("workspace")
    monkeypatch.setattr("flows.run.live.RolloutLoop", None)
    monkeypatch.setattr("flows.training.stages.update.update_policy", None)


def replay(workspace: Path, iterations: str, *overrides: str, run: str, source: str = "first") -> str:
    """Replay and return what was printed."""
    console = Console(file=io.StringIO(), width=160)
    start_replay(source, iterations, overrides, run, workspace, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def ledger(storage: Storage, run: str) -> dict[tuple[int, str], list[str | None]]:
    """Return where each attempt at each stage comes from, None for work that was done."""
    rows: dict[tuple[int, str], list[str | None]] = {}
    for row in storage.database.query(
        "SELECT iteration, stage, adopted_from FROM stages WHERE run = $run AND status = 'done' ORDER BY attempt",
        {"run": run},
    ).to_pylist():
        rows.setdefault((row["iteration"], row["stage"]), []).append(row["adopted_from"])
    return rows


def figures(storage: Storage, run: str, iterations: Sequence[int]) -> dict[str, tuple[float, float]]:
    rows = storage.database.query("SELECT * FROM v_replays WHERE run = $run", {"run": run}).to_pylist()
    return {row["figure"]: (row["source"], row["replay"]) for row in rows if row["iterations"] == list(iterations)}


def credit(storage: Storage, run: str, iteration: int) -> list[dict]:
    of_iteration = "SELECT * FROM query_credit WHERE run = $run AND iteration = $i"
    rows = storage.database.query(of_iteration, {"run": run, "i": iteration})
    dropped = [{k: v for k, v in row.items() if k not in ("run", "iteration")} for row in rows.to_pylist()]
    return sorted(dropped, key=lambda row: (row["rollout_id"], row["position"]))


def test_the_same_settings_give_the_same_numbers_and_no_work(workspace: Path, storage: Storage) -> None:
    said = replay(workspace, "1:2", run="same")
    rows = ledger(storage, "same")
    assert {key for key, where in rows.items() if where == [None]} == {(1, "teacher")}, "the source was warming up"
    assert all(where == ["first"] for key, where in rows.items() if key != (1, "teacher"))
    assert set(rows) == {(iteration, stage) for iteration in (1, 2) for stage in STAGES}
    assert credit(storage, "same", 2) == credit(storage, "first", 2) != []
    both, alone = figures(storage, "same", [2]), figures(storage, "same", [1])
    assert both["query tokens"][0] > 5
    assert all(source == pytest.approx(ours, rel=1e-12) for source, ours in both.values())
    assert {source for source, _ in alone.values()} == {None}
    assert alone["mean JSD"][1] > 0
    assert "iteration 2: sample adopted, score adopted, hindsight adopted, teacher adopted" in said
    assert "iterations 2" in [line.strip() for line in said.splitlines()]
    assert "replay same: iterations 1:2 of run first; same settings" in said


def test_the_same_request_again_does_nothing_and_prints_the_table(
    workspace: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replay(workspace, "2", "hindsight.labels=none", run="again")
    before = attempts_of(storage.ledger, "again")
    monkeypatch.setattr("flows.training.stages.teacher.compute_targets", None)
    monkeypatch.setattr("flows.training.stages.hindsight.build_blocks", None)
    second = replay(workspace, "2", "hindsight.labels=none", run="again")
    assert attempts_of(storage.ledger, "again") == before
    assert "hindsight done before, teacher done before" in second
    table = first[first.index("figure") :]
    assert second.endswith(table)
    assert CORRECT in table


def test_shuffled_labels_are_what_the_method_makes_of_the_stored_rollouts(workspace: Path, storage: Storage) -> None:
    replay(workspace, "2", "hindsight.labels=shuffled", run="shuffled")
    assert ledger(storage, "shuffled") == {(2, stage): [None if stage in STAGES[2:] else "first"] for stage in STAGES}
    settings = load_settings("tiny", [*SOURCE, "hindsight.labels=shuffled"])
    groups: list[Group] = stored(storage, "first", "sample", "groups", Group)
    scores: list[Score] = stored(storage, "first", "score", "scores", Score)
    tokenizer = load_tokenizer(model_folder("mini"))
    model = load_model(workspace / "checkpoints" / "run=first" / "version=00001", "float32")
    blocks = make_blocks(tokenizer, groups, scores, settings, model.config.max_position_embeddings)
    _, _, expected = compute_targets(
        model,
        tokenizer,
        groups,
        blocks,
        TeacherSettings.of(settings),
    )
    assert stored(storage, "shuffled", "teacher", "credit", QueryCredit) == expected
    assert credit(storage, "shuffled", 2) != credit(storage, "first", 2)
    texts = {block.text for block in blocks}
    rows = storage.database.query("SELECT text FROM hindsight_blocks WHERE run = 'shuffled'").to_pylist()
    assert {row["text"] for row in rows} == texts


def stored(storage: Storage, run: str, stage: str, name: str, record_type: type) -> list:
    record = storage.ledger.done(StageKey.model_validate({"run": run, "iteration": 2, "stage": stage}))
    assert isinstance(record, StageRecord)
    return storage.artifacts.read_records(file_of(record, name), record_type)


def test_another_divergence_needs_no_other_blocks_and_changes_the_loss_alone(workspace: Path, storage: Storage) -> None:
    replay(workspace, "2", "distillation.divergence=reverse_kl", run="reverse")
    where = {stage: from_run for (_, stage), (from_run,) in ledger(storage, "reverse").items()}
    assert where == {"sample": "first", "score": "first", "hindsight": "first", "teacher": None}
    both = figures(storage, "reverse", [2])
    changed = {name for name, (source, ours) in both.items() if source != pytest.approx(ours, rel=1e-6)}
    assert changed == {"L_SD, as each run measures it"}
    (update,) = storage.database.query(
        "SELECT sum(sd_loss * n) / sum(n) AS sd_loss FROM update_metrics JOIN (SELECT run, iteration, "
        "count(DISTINCT rollout_id) AS n FROM query_credit GROUP BY ALL) USING (run, iteration) WHERE run = 'first'"
    ).to_pylist()
    # Each iteration takes one step, so its loss is that of the weights that sampled.
    assert both["L_SD, as each run measures it"][0] == pytest.approx(update["sd_loss"], rel=1e-4)


def test_the_views_work_for_a_replay(workspace: Path, storage: Storage) -> None:
    replay(workspace, "2", "hindsight.members=focal_only", run="focal")
    own = "run, mean_log_ratio, weighted_log_ratio, mean_jsd, label"
    of_run = f"SELECT * EXCLUDE ({own}) FROM v_queries WHERE run = $run AND iteration = 2 ORDER BY ALL"
    ours, source = (storage.database.query(of_run, {"run": run}).to_pylist() for run in ("focal", "first"))
    assert ours == source != []
    (row,) = storage.database.query("SELECT * FROM v_credit WHERE run = 'focal'").to_pylist()
    assert row["mean_jsd"] == pytest.approx(figures(storage, "focal", [2])["mean JSD"][1])
    of_run = "SELECT * EXCLUDE (run) FROM iteration_metrics WHERE run = $run AND iteration = 2"
    ours, source = (storage.database.query(of_run, {"run": run}).to_pylist() for run in ("focal", "first"))
    assert ours == source


def test_outcomes_stay_the_sources_when_the_threshold_of_the_labels_changes(workspace: Path, storage: Storage) -> None:
    replay(workspace, "2", "hindsight.rho=0.99", "hindsight.label_metric=em", run="strict")
    of_run = "SELECT rollout_id, outcome FROM rollouts WHERE run = $run AND iteration = 2 ORDER BY 1"
    ours, source = (storage.database.query(of_run, {"run": run}).to_pylist() for run in ("strict", "first"))
    assert ours == source
    adopted = storage.ledger.done(StageKey(run="strict", iteration=2, stage="score"))
    assert adopted is not None
    again = StageRowsReader(storage.ledger, storage.artifacts)(adopted)["rollouts"].to_pylist()
    assert sorted((row["rollout_id"], row["outcome"]) for row in again) == [tuple(row.values()) for row in source]


def test_a_source_that_the_database_lacks_enters_it_for_the_comparison(workspace: Path, storage: Storage) -> None:
    replay(workspace, "2", run="indexed")
    before = figures(storage, "indexed", [2])
    storage.database.checkpoint()
    storage.database.path.unlink()
    replay(workspace, "2", run="indexed")
    after = figures(open_storage(workspace), "indexed", [2])
    assert after == {name: pytest.approx(pair) for name, pair in before.items()}
    assert after["mean JSD"][0] > 0


def test_a_replay_that_was_interrupted_goes_on(
    workspace: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = flows.replay.work.compute_teacher

    def interrupted(trainer: Trainer, runner: StageRunner, iteration: int, *records: StageRecord) -> StageRecord:
        if iteration == 2:
            raise KeyboardInterrupt
        return real(trainer, runner, iteration, *records)

    with monkeypatch.context() as patch:
        patch.setattr(flows.replay.work, "compute_teacher", interrupted)
        with pytest.raises(SystemExit, match="130"):
            replay(workspace, "1:2", "hindsight.masking=none", run="broken")
    record = storage.ledger.get_run("broken")
    assert (record.status, record.iterations_done, record.source) == ("interrupted", 1, "first")
    assert run_command(["resume", "broken", "--workspace", str(workspace)]) == 0
    assert all(len(where) == 1 for where in ledger(storage, "broken").values())
    record = storage.ledger.get_run("broken")
    assert (record.status, record.iterations_done) == ("done", 2)
    assert figures(storage, "broken", [2])["query tokens"][1] > 5


def test_a_run_of_plain_grpo_is_shown_to_a_teacher(workspace: Path, storage: Storage) -> None:
    replay(workspace, "1", run="grpo-shown", source="grpo")
    shown = figures(storage, "grpo-shown", [1])
    assert shown["mean JSD"][1] > 0
    assert {source for source, _ in shown.values()} == {None}


def test_on_the_command_line(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def sdsearch(*arguments: str) -> tuple[int, str]:
        code = run_command([*arguments, "--workspace", str(workspace)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    code, said = sdsearch("replay", "first", "--iterations", "2", "--run", "typed")
    assert (code, "log-ratio" in said) == (0, True)
    code, said = sdsearch("runs")
    row = next(line.split() for line in said.splitlines() if "typed" in line)
    assert row[:5] == ["typed", "replay", "first", "done", "1/1"]
    code, said = sdsearch("show", "typed")
    assert "replay of iterations 2:2 of run 'first'" in said
    assert CORRECT in said
    for arguments, problem in (
        (("replay", "first", "--iterations", "2:9"), "no rollouts of iterations 3:9; what can be replayed: 1:2"),
        (("replay", "first", "--iterations", "3:2"), "expected FIRST:LAST"),
        (("replay", "first", "--iterations", "2", "--run", "first"), "is a run that trains"),
        (
            ("replay", "first", "--iterations", "1", "--run", "typed"),
            "is a replay of iterations 2:2 of run 'first'; choose",
        ),
        (("replay", "typed", "--iterations", "2"), "name the run that sampled: first"),
        (("replay", "frist", "--iterations", "2"), "did you mean 'first'"),
        (("evaluate", "--run", "typed"), "name the run that sampled: first"),
    ):
        code, said = sdsearch(*arguments)
        assert code == 2
        assert problem in said
        assert said.count("\n") == 1


def test_a_replay_is_never_trained(workspace: Path) -> None:
    replay(workspace, "2", run="untrained")
    with pytest.raises(UserError, match="is a replay of iterations 2:2 of run 'first', which trains nothing"):
        train_plain(None, "untrained", workspace, SilentReporter(), resume=True)
