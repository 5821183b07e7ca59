"""grpo.filter through the whole flow: who is left out or replaced, and the same bits after a stop and on two ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flows.training.sampled_groups
import flows.training.stages.score
import sdsearch
from flows.console.errors import UserError
from flows.replay.plan import plan_replay
from flows.replay.work import replay
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.trainer import InProcessTrainer
from sdsearch.credit.filtering import mark_filtered, num_teaching
from sdsearch.data.curriculum import Curriculum
from sdsearch.sampling.rollouts import RolloutLoop
from tests.flows.training.test_ranks import distance, policy
from tests.flows.training.test_training import TABLES, rows, train
from tests.support.stopping import fails_once

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

SHORT = (
    "distillation.warmup_iterations=0",
    "iterations=2",
    "distillation.alpha=0.9",
    "model.torch_threads=1",
    "rollout.questions_per_batch=2",
    "rollout.group_size=2",  # Then rewards are often equal.
    "data.questions_per_iteration=4",
    "evaluation.num_questions=1",
    "evaluation.modes=['greedy']",
)
RUNS = {
    "plain": SHORT,
    "filtered": (*SHORT, "grpo.filter=zero_advantage"),
    "resampled": (*SHORT, "grpo.filter=resample"),
    "bounded": (*SHORT, "grpo.filter=resample", "grpo.resample_rounds=1"),
}
WANTED = 4


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filter")
    for name, lines in RUNS.items():
        train(folder, name, load_settings("tiny", lines))
    return folder


def sha256(workspace: Path, run: str) -> str:
    return open_storage(workspace).ledger.get_run(run).policy_sha256


def groups(workspace: Path, run: str, iteration: int) -> list[dict[str, Any]]:
    return [row for row in rows(workspace, "groups", run) if row["iteration"] == iteration]


def test_groups_without_an_advantage_are_left_out_and_distilled(workspace: Path) -> None:
    for run in ("filtered", "resampled", "bounded"):
        for row in rows(workspace, "groups", run):
            assert row["filtered"] == row["zero_advantage"] == (row["reward_std"] == 0)
        for figures in rows(workspace, "v_iterations", run):
            if figures["iteration"]:
                of_iteration = groups(workspace, run, figures["iteration"])
                assert figures["num_filtered_groups"] == sum(row["filtered"] for row in of_iteration)
                assert figures["num_replacement_groups"] == sum(row["replacement"] > 0 for row in of_iteration)
                assert figures["num_groups"] == len(of_iteration)
    out = {row["group_id"] for row in rows(workspace, "groups", "filtered") if row["filtered"]}
    taught = {row["rollout_id"].rpartition("/")[0] for row in rows(workspace, "teacher_targets", "filtered")}
    assert out & taught, "the test needs a group that is left out and searched"
    assert not any(row["filtered"] or row["replacement"] for row in rows(workspace, "groups", "plain"))
    assert len({sha256(workspace, run) for run in RUNS}) == len(RUNS)


def test_the_own_groups_are_those_of_a_run_without_a_filter(workspace: Path) -> None:
    plain = groups(workspace, "plain", 1)
    for run in ("filtered", "resampled"):
        own = [row for row in groups(workspace, run, 1) if not row["replacement"]]
        assert [row["question_key"] for row in own] == [row["question_key"] for row in plain]
        assert [row["reward_mean"] for row in own] == [row["reward_mean"] for row in plain]


@pytest.mark.parametrize(("run", "num_rounds"), [("resampled", 3), ("bounded", 1)])
def test_each_round_draws_as_many_as_are_missing(workspace: Path, run: str, num_rounds: int) -> None:
    opened = sdsearch.open_run(workspace, run)
    curriculum = Curriculum(opened.questions("train"), WANTED, 0)
    for iteration in (1, 2):
        stored = opened.iteration(iteration).records().groups
        spread = {row["group_id"] for row in groups(workspace, run, iteration) if not row["filtered"]}
        assert len({group.question.key for group in stored}) == len(stored)
        teaching = sum(group.id in spread for group in stored if not group.replacement)
        for number in range(1, num_rounds + 1):
            drawn = [group for group in stored if group.replacement == number]
            assert len(drawn) == WANTED - teaching
            teaching += sum(group.id in spread for group in drawn)
        assert max(group.replacement for group in stored) <= num_rounds
        assert teaching <= WANTED
        replacements = [group.question for group in stored if group.replacement]
        assert replacements == curriculum.replacements_of(iteration, len(replacements))
    assert any(row["replacement"] == num_rounds for row in rows(workspace, "groups", run)), "the bound is met"


def test_steps_are_as_many_and_their_loss_is_what_the_records_say(workspace: Path) -> None:
    plain = rows(workspace, "update_metrics", "plain")
    for run in ("filtered", "resampled"):
        steps = rows(workspace, "update_metrics", run)
        assert [(step["iteration"], step["step"]) for step in steps] == [(s["iteration"], s["step"]) for s in plain]
        assert sum(step["num_rollouts"] for step in steps) == len(rows(workspace, "rollouts", run))
        again = sdsearch.open_run(workspace, run).iteration(1)
        assert again.loss().loss == pytest.approx(again.records().update.steps[0].loss, abs=1e-5)
        records = again.records()
        assert sdsearch.score_groups(records.groups, sdsearch.open_run(workspace, run).settings) == records.scores


def stop_before_replacements(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(flows.training.sampled_groups, "num_teaching", fails_once(num_teaching))


def stop_in_replacements(patch: pytest.MonkeyPatch) -> None:
    """The start's evaluation is a batch, the own groups are two; the one after next is in the second round."""
    patch.setattr(RolloutLoop, "roll_out", fails_once(RolloutLoop.roll_out, at=5))


def stop_before_score(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(flows.training.stages.score, "mark_filtered", fails_once(mark_filtered))


def stop_before_teacher(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(InProcessTrainer, "compute_teacher", fails_once(InProcessTrainer.compute_teacher, at=2))


def stop_before_update(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(InProcessTrainer, "update_weights", fails_once(InProcessTrainer.update_weights, at=2))


@pytest.mark.parametrize(
    "stop",
    [stop_before_replacements, stop_in_replacements, stop_before_score, stop_before_teacher, stop_before_update],
)
def test_a_run_that_stopped_has_the_same_bits(
    workspace: Path, stop: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"resampled-{stop.__name__}"
    with monkeypatch.context() as patch:
        stop(patch)
        with pytest.raises(UserError, match="drawn for the test"):
            train(workspace, name, load_settings("tiny", RUNS["resampled"]))
    train(workspace, name, None, resume=True)
    for table in TABLES:
        if table not in ("stages", "runs"):
            assert rows(workspace, table, name) == rows(workspace, table, "resampled"), table
    assert sha256(workspace, name) == sha256(workspace, "resampled")


def test_two_ranks_train_what_one_does(workspace: Path) -> None:
    lines = (*RUNS["resampled"], "distributed.ranks=2", "distributed.timeout_s=120")
    train(workspace, "ranks", load_settings("tiny", lines))
    assert 0 < distance(policy(workspace, "resampled", 1), policy(workspace, "ranks", 1)) < 1e-5
    for table in ("groups", "iteration_metrics"):
        first = [row for row in rows(workspace, table, "ranks") if row["iteration"] == 1]
        assert first == [row for row in rows(workspace, table, "resampled") if row["iteration"] == 1]


def test_a_replay_adopts_the_replacements(workspace: Path) -> None:
    storage = open_storage(workspace)
    plan = plan_replay(storage.ledger.get_run("resampled"), "1:2", ("distillation.top_k=3",), "again")
    replay(plan, storage, SilentReporter())
    for table in ("groups", "rollouts", "iteration_metrics"):
        assert rows(workspace, table, "again") == rows(workspace, table, "resampled"), table
    asked = [row["rollout_id"] for row in rows(workspace, "teacher_targets", "resampled")]
    assert [row["rollout_id"] for row in rows(workspace, "teacher_targets", "again")] == asked


def test_a_mix_that_is_used_up_ends_the_rounds(workspace: Path, tmp_path: Path) -> None:
    """Of five questions four are the iteration's own: one is left to draw."""
    questions = tmp_path / "questions.jsonl"
    mix = sdsearch.open_run(workspace, "plain").questions("train")[:5]
    questions.write_text("".join(f"{question.model_dump_json(exclude={'split', 'dataset'})}\n" for question in mix))
    lines = (*RUNS["resampled"], "iterations=1", "data.dataset=world", "data.train=['small:train']")
    train(workspace, "small", load_settings("tiny", [*lines, f"data.sets.small={questions}"]))
    drawn = [row["replacement"] for row in groups(workspace, "small", 1)]
    assert len(drawn) <= 5


def test_a_group_that_is_distilled_by_retries_may_be_replaced(workspace: Path) -> None:
    retried = (*RUNS["bounded"], "iterations=1", "rollout.retries=1", "rollout.retries_use=distillation")
    train(workspace, "retried", load_settings("tiny", retried))
    failed = {row["group_id"] for row in rows(workspace, "retries", "retried")}
    assert failed & {row["group_id"] for row in groups(workspace, "retried", 1) if row["replacement"]}


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (("reward.turn=information_gain",), "different rewards of whole rollouts"),
        (("rollout.retries=1",), "replaces the groups that rollout.retries"),
    ],
)
def test_what_does_not_go_together_is_refused(lines: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_settings("tiny", ["grpo.filter=resample", *lines])
    load_settings("tiny", ["grpo.filter=zero_advantage", *lines])
