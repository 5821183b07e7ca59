"""Runs whose blocks show more than the siblings, or are contrasted: the whole flow, after a stop, in replays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.console.errors import UserError
from flows.replay.plan import plan_replay
from flows.replay.work import replay
from flows.run.progress import SilentReporter
from flows.run.stage_files import StageFiles
from flows.settings.load import load_settings
from flows.training.fork import fork_run
from flows.training.job import open_storage
from flows.training.loop import train_plain
from flows.training.memory import Memory, remember
from flows.training.trainer import InProcessTrainer
from schemas.records.ledger import StageKey, StageRecord
from schemas.settings.root import HindsightSettings, Settings
from sdsearch.world import load_questions
from storage.errors import DamagedArtifactError
from storage.storage import Storage
from tests.flows.training.test_training import TABLES, rows

pytestmark = pytest.mark.long

CHOSEN = [
    "data.questions_per_iteration=3",
    "rollout.group_size=2",
    "iterations=4",
    "distillation.warmup_iterations=0",
    "evaluation.num_questions=1",
    "evaluation.every=9",
    "evaluation.modes=['greedy']",
    "storage.keep_checkpoints=9",
    "model.torch_threads=1",
]
EVERYTHING = ["hindsight.memory=2", "hindsight.contrast=flipped", "hindsight.answer=true"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three questions, each of them in every iteration."""
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    chosen = load_questions("train")[:3]
    lines = [{"id": q.id, "question": q.question, "golden_answers": list(q.golden_answers)} for q in chosen]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chosen(questions: Path) -> list[str]:
    return [*CHOSEN, f"data.questions={questions}"]


def settings_of(chosen: list[str], *overrides: str) -> Settings:
    return load_settings("tiny", [*chosen, *overrides])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, chosen: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    train_plain(settings_of(chosen), "plain", folder, SilentReporter())
    train_plain(settings_of(chosen, *EVERYTHING), "everything", folder, SilentReporter())
    return folder


@pytest.fixture
def storage(workspace: Path) -> Storage:
    return open_storage(workspace)


def ask(storage: Storage, source: str, iterations: str, *overrides: str, run: str) -> None:
    replay(plan_replay(storage.ledger.get_run(source), iterations, overrides, run), storage, SilentReporter())


def done(storage: Storage, run: str, iteration: int, stage: str) -> StageRecord:
    record = storage.ledger.done(StageKey.model_validate({"run": run, "iteration": iteration, "stage": stage}))
    assert record
    return record


def memory_of(storage: Storage, run: str, iteration: int, num: int) -> Memory:
    stages = (done(storage, run, iteration, stage) for stage in ("sample", "score"))
    return remember(storage, StageFiles(storage.artifacts), HindsightSettings(memory=num), *stages)


def attempts(workspace: Path, run: str, iteration: int) -> list[dict[str, Any]]:
    return [row for row in rows(workspace, "hindsight_attempts", run) if row["iteration"] == iteration]


def test_groups_with_one_outcome_are_shown_what_was_sampled_before(workspace: Path) -> None:
    outcomes: dict[tuple[int, str], list[str]] = {}
    indexed: dict[tuple[int, str, int], dict[str, Any]] = {}
    for row in rows(workspace, "rollouts", "everything"):
        outcomes.setdefault((row["iteration"], row["group_id"]), []).append(row["outcome"])
        indexed[row["iteration"], row["group_id"], row["rollout_index"]] = row
    filled = 0
    for (iteration, group), found in outcomes.items():
        shown = [row for row in attempts(workspace, "everything", iteration) if row["group_id"] == group]
        shown.sort(key=lambda row: row["attempt_index"])
        earlier = [row["sampled_in"] for row in shown if row["sampled_in"] is not None]
        if len(set(found)) == 1:
            newest = [before for before in (iteration - 1, iteration - 2) if before > 0]
            assert earlier == [before for before in newest for _ in range(2)]
            filled += len(earlier)
        else:
            assert earlier == []
        for row in shown:
            sampled_in = row["sampled_in"] or iteration
            source = indexed[sampled_in, f"{sampled_in:05d}{group[5:]}", row["rollout_index"]]
            assert (row["label"], row["contents"]) == (source["outcome"], list(source["queries"]))
    assert filled >= 4, "the comparison needs groups with one outcome after the first iteration"


def test_blocks_end_in_the_answer_and_have_their_contrast(workspace: Path) -> None:
    golden = {row["question_key"]: row["golden_answers"] for row in rows(workspace, "questions", "everything")}
    blocks = rows(workspace, "hindsight_blocks", "everything")
    for row in blocks:
        key = row["group_id"].partition("/")[2]
        assert row["text"].endswith(f"\nGolden answer: {' | '.join(golden[key])}\n\n")
        swapped = row["text"].replace("(CORRECT)", "(#)").replace("(INCORRECT)", "(CORRECT)")
        assert row["contrast_text"] == swapped.replace("(#)", "(INCORRECT)") != row["text"]
    assert len(blocks) == 12
    assert all(row["contrast_text"] == "" for row in rows(workspace, "hindsight_blocks", "plain"))


def test_a_group_with_one_outcome_has_a_signal(workspace: Path) -> None:
    same = {row["group_id"] for row in rows(workspace, "hindsight_blocks", "plain") if row["homogeneous"]}
    storage = open_storage(workspace)
    ask(storage, "plain", "1:4", "hindsight.contrast=flipped", run="contrasted")
    credit = [row for row in rows(workspace, "query_credit", "contrasted") if row["group_id"] in same]
    assert len(credit) > 10
    assert sum(row["jsd"] for row in credit) / len(credit) > 1e-5
    gone = [row for row in credit if row["jsd"] == 0]
    assert not gone


@pytest.mark.parametrize("work", ["compute_teacher", "update_weights"])
def test_a_run_that_stopped_has_the_same_bits(
    workspace: Path, chosen: list[str], work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(InProcessTrainer, work)

    def fails(self: object, attempt: Any, *arguments: Any) -> object:
        if attempt.iteration == 3:
            raise UserError("drawn for the test")
        return real(self, attempt, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(InProcessTrainer, work, fails)
        with pytest.raises(UserError, match="drawn for the test"):
            train_plain(settings_of(chosen, *EVERYTHING), work, workspace, SilentReporter())
    train_plain(None, work, workspace, SilentReporter(), resume=True)
    for table in TABLES:
        if table != "stages":
            assert rows(workspace, table, work) == rows(workspace, table, "everything"), table


def test_what_is_read_of_earlier_iterations_is_an_input_of_the_stage(workspace: Path, storage: Storage) -> None:
    memory = memory_of(storage, "everything", 4, 2)
    assert [(record.iteration, record.stage) for record in memory.read][:2] == [(3, "sample"), (3, "score")]
    assert {record.iteration for record in memory.read} == {2, 3}
    assert memory_of(storage, "everything", 1, 2) == Memory()
    assert memory_of(storage, "everything", 4, 0) == Memory()
    ask(storage, "everything", "4", run="same")
    assert done(storage, "same", 4, "hindsight").adopted_from == "everything"
    assert done(storage, "same", 4, "teacher").adopted_from == "everything"
    ask(storage, "plain", "4", *EVERYTHING, run="asked")
    plain, asked = (done(storage, run, 4, "hindsight") for run in ("plain", "asked"))
    assert plain.input_hash != asked.input_hash


def test_a_replay_remembers_what_the_run_sampled(workspace: Path, storage: Storage) -> None:
    ask(storage, "plain", "3", "hindsight.memory=1", run="remembered")
    shown = attempts(workspace, "remembered", 3)
    same = [row["group_id"] for row in rows(workspace, "hindsight_blocks", "plain") if row["homogeneous"]]
    assert {row["group_id"] for row in shown if row["sampled_in"] == 2} == {key for key in same if key[:5] == "00003"}
    assert {row["sampled_in"] for row in shown} == {None, 2}
    labels = rows(workspace, "v_rollouts", "remembered")
    assert len(labels) == 6, "an earlier rollout is no sibling"
    assert all(row["label"] == row["outcome"] for row in labels)


def test_a_fork_remembers_what_its_source_sampled(storage: Storage, chosen: list[str], workspace: Path) -> None:
    fork_run(storage, "everything", "branch", settings_of(chosen, *EVERYTHING, "iterations=6"))
    train_plain(None, "branch", workspace, SilentReporter(), resume=True)
    assert {(r.run, r.iteration) for r in memory_of(storage, "branch", 5, 9).read} == {
        ("everything", iteration) for iteration in range(1, 5)
    }
    assert {(r.run, r.iteration) for r in memory_of(storage, "branch", 6, 2).read} == {("branch", 5), ("everything", 4)}


def test_an_earlier_file_that_is_damaged_is_named(workspace: Path, storage: Storage, chosen: list[str]) -> None:
    train_plain(settings_of(chosen, "iterations=2"), "damaged", workspace, SilentReporter())
    scores = storage.artifacts.path(done(storage, "damaged", 1, "score").outputs[0])
    scores.write_bytes(scores.read_bytes()[:-9])
    with pytest.raises(DamagedArtifactError, match=r"iteration=00001.stage=score"):
        ask(storage, "damaged", "2", "hindsight.memory=1", run="refused")


def test_the_own_query_left_out_or_replaced_is_asked_in_a_replay(workspace: Path, storage: Storage) -> None:
    for how in ("drop", "paraphrase"):
        ask(storage, "plain", "1:4", f"hindsight.own_query={how}", run=how)
    tokens = {
        run: {(r["rollout_id"], r["position"]): r["teacher_logprob"] for r in rows(workspace, "query_credit", run)}
        for run in ("plain", "drop", "paraphrase")
    }
    assert tokens["plain"].keys() == tokens["drop"].keys()
    assert tokens["paraphrase"].keys() <= tokens["drop"].keys()
    assert len(tokens["paraphrase"]) > 10
    lift = {
        run: sum(values[key] for key in tokens["paraphrase"]) / len(tokens["paraphrase"])
        for run, values in tokens.items()
    }
    assert lift["plain"] > lift["drop"], "what the block holds is copied"
    found = {row["own_query"]: row for row in canned(storage, "plain")}
    assert found.keys() == {"keep", "drop", "paraphrase"}
    assert found["keep"]["queries"] == found["drop"]["queries"] >= found["paraphrase"]["queries"] > 0


def canned(storage: Storage, run: str) -> list[dict[str, Any]]:
    from storage.database.canned import load_canned

    return storage.database.query(load_canned("self_copying").sql, {"run": run}).to_pylist()
