"""Retries through the whole flow: who is retried and by whom, where they are kept, and the same bits after a stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from markupsafe import escape
from starlette.testclient import TestClient

import flows.training.stages.sample
import sdsearch
from flows.app import run_command
from flows.console.errors import UserError
from flows.inspect.web.server import build_app
from flows.replay.plan import plan_replay
from flows.replay.work import replay
from flows.run.progress import SilentReporter
from flows.training.job import open_storage
from flows.training.trainer import InProcessTrainer
from schemas.settings.root import Settings
from sdsearch.sampling.rollouts import RolloutLoop
from storage.workspace import Workspace
from tests.flows.training.test_training import TABLES, quick, rows, train
from tests.golden.naive import at_sampled, logprobs_of
from tests.support.stopping import fails_once

pytestmark = pytest.mark.long

SHORT = (
    "distillation.warmup_iterations=0",
    "iterations=1",
    "distillation.alpha=0.9",
    "model.torch_threads=1",
    "rollout.questions_per_batch=2",
    "data.questions_per_iteration=4",
    "evaluation.num_questions=1",
    # Retries that fail alike earn differently.
    "reward.format_bonus=0.25",
)
RETRIED = (*SHORT, "rollout.retries=3")
RUNS = {
    "plain": SHORT,
    "off_policy": RETRIED,
    "distillation": (*RETRIED, "rollout.retries_use=distillation"),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retries")
    for name, lines in RUNS.items():
        train(folder, name, quick(*lines))
    return folder


def sha256(workspace: Path, run: str) -> str:
    (row,) = rows(workspace, "runs", run)
    return str(row["policy_sha256"])


def failed_groups(workspace: Path, run: str) -> set[str]:
    siblings = rows(workspace, "rollouts", run)
    correct = {row["group_id"] for row in siblings if row["outcome"] == "CORRECT"}
    return {row["group_id"] for row in siblings} - correct


def test_groups_without_a_correct_rollout_are_retried_and_counted_apart(workspace: Path) -> None:
    for run in ("off_policy", "distillation"):
        failed, siblings, retries = (
            failed_groups(workspace, run),
            rows(workspace, "rollouts", run),
            rows(workspace, "retries", run),
        )
        assert failed, "the test needs a group that failed"
        assert failed < {row["group_id"] for row in siblings}, "and one that did not"
        size = 1 + max(row["rollout_index"] for row in siblings)
        assert {row["group_id"] for row in retries} == failed
        assert [row["rollout_index"] for row in retries] == [size, size + 1, size + 2] * len(failed)
        (figures,) = (row for row in rows(workspace, "v_iterations", run) if row["iteration"])
        assert figures["num_retries"] == len(retries) == 3 * len(failed)
        assert figures["num_retries_correct"] == sum(row["outcome"] == "CORRECT" for row in retries)
        assert figures["num_retry_tokens"] == sum(row["num_completion_tokens"] for row in retries)
        assert figures["num_rollouts"] == len(siblings) == len(rows(workspace, "rollouts", "plain"))
        for table in ("turns", "hindsight_blocks", "hindsight_attempts"):
            assert rows(workspace, table, run) == rows(workspace, table, "plain"), table
    assert rows(workspace, "retries", "plain") == []
    assert len({sha256(workspace, run) for run in RUNS}) == len(RUNS)


def test_pages_and_show_list_the_retries_of_a_group_and_of_no_other(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    retries = [row for row in rows(workspace, "retries", "off_policy") if row["queries"]]
    failed = retries[0]["group_id"]
    other = next(row["group_id"] for row in rows(workspace, "rollouts", "off_policy") if row["outcome"] == "CORRECT")
    with TestClient(build_app(Workspace(workspace)), base_url="http://127.0.0.1") as client:
        shown, without = (client.get(f"/runs/off_policy/iterations/1/groups/{group}").text for group in (failed, other))
    section = shown[shown.index("<h2>Retries</h2>") :]
    for row in retries:
        if row["group_id"] == failed:
            assert f"<td>{escape(' / '.join(row['queries']))}</td>" in section
    assert "<h2>Retries</h2>" not in without
    said = {}
    for group in (failed, other):
        assert run_command(["show", "off_policy", "1", group, "--workspace", str(workspace)]) == 0
        said[group] = " ".join(capsys.readouterr().out.split())
    assert "retries, sampled with the block" in said[failed]
    assert retries[0]["queries"][0].split()[0] in said[failed].partition("retries, sampled")[2]
    assert "retries, sampled" not in said[other]


def test_a_retry_is_the_policy_with_the_block(workspace: Path) -> None:
    """Its stored log-probabilities are read again with full passes: with the block they are the same, without not."""
    run = sdsearch.open_run(workspace, "off_policy")
    policy, records = run.policy(0), run.iteration(1).records()
    groups = {group.id: group for group in records.groups}
    gaps = []
    for retried in records.retries:
        group = groups[retried.group_id]
        prompt, offset = group.prompt_token_ids, group.block_offset
        context = (*prompt[:offset], *retried.block_token_ids, *prompt[offset:])
        for rollout in retried.rollouts:
            with torch.no_grad():
                behaviour = at_sampled(logprobs_of(policy.model, context, rollout, 1.0), rollout)
                student = at_sampled(logprobs_of(policy.model, prompt, rollout, 1.0), rollout)
            given = torch.tensor(rollout.sampled_logprobs).double()
            assert float((behaviour - given).abs().max()) < 1e-4
            gaps.append(float((student - given).abs().max()))
    assert max(gaps) > 0.1, "the block tells the policy something"


def test_advantages_are_over_siblings_and_retries(workspace: Path) -> None:
    retries, siblings = rows(workspace, "retries", "off_policy"), rows(workspace, "rollouts", "off_policy")
    mixed = 0
    for group in failed_groups(workspace, "off_policy"):
        members = [row for row in (*siblings, *retries) if row["group_id"] == group]
        rewards = [row["reward"] for row in members]
        mixed += len(set(rewards)) > 1
        for row in members:
            flat = len(set(rewards)) == 1
            expected = 0.0 if flat else (row["reward"] - mean(rewards)) / (stdev(rewards) + 1e-6)
            assert row["advantage"] == pytest.approx(expected)
    assert mixed, "the test needs a retry that succeeded"
    assert {row["advantage"] for row in rows(workspace, "retries", "distillation")} == {0.0}
    assert rows(workspace, "rollouts", "distillation") == rows(workspace, "rollouts", "plain")


def test_what_the_teacher_is_asked_about(workspace: Path) -> None:
    retried = {row["rollout_id"] for row in rows(workspace, "retries", "distillation")}
    for run, asked in {"off_policy": False, "distillation": True}.items():
        taught = {row["rollout_id"] for row in rows(workspace, "teacher_targets", run)}
        assert bool(taught & retried) == asked, run
    plain = {row["rollout_id"] for row in rows(workspace, "teacher_targets", "plain")}
    assert plain == {row["rollout_id"] for row in rows(workspace, "teacher_targets", "distillation")} - retried


@pytest.mark.parametrize("run", ["off_policy", "distillation"])
def test_steps_are_as_many_and_their_loss_is_what_the_records_say(workspace: Path, run: str) -> None:
    steps, plain = rows(workspace, "update_metrics", run), rows(workspace, "update_metrics", "plain")
    assert len(steps) == len(plain)
    extra = len(rows(workspace, "retries", run))
    assert sum(step["num_rollouts"] for step in steps) == sum(step["num_rollouts"] for step in plain) + extra
    assert max(step["sampler_max_difference"] for step in steps[:1]) < 1e-3, "of siblings alone"
    again = sdsearch.open_run(workspace, run).iteration(1)
    assert again.loss().loss == pytest.approx(again.records().update.steps[0].loss, abs=1e-5)
    assert (again.loss(group=min(failed_groups(workspace, run))).num_rollouts) > 3


def stop_before_retries(patch: pytest.MonkeyPatch) -> None:
    real = flows.training.stages.sample.sample_retries
    patch.setattr(flows.training.stages.sample, "sample_retries", fails_once(real))


def stop_in_retries(patch: pytest.MonkeyPatch) -> None:
    """The last batch fails: the start's evaluation is two, the groups are the next ones, then come the retries."""
    real, calls = RolloutLoop.roll_out, []

    def fails(*arguments: Any, **options: Any) -> Any:
        calls.append(options.get("first_index", 0))
        if sum(1 for first in calls if first) == 1 and calls[-1]:
            raise UserError("drawn for the test")
        return real(*arguments, **options)

    patch.setattr(RolloutLoop, "roll_out", fails)


def stop_before_update(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(InProcessTrainer, "update_weights", fails_once(InProcessTrainer.update_weights))


def stop_before_teacher(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(InProcessTrainer, "compute_teacher", fails_once(InProcessTrainer.compute_teacher))


@pytest.mark.parametrize(
    ("run", "stop"),
    [
        ("off_policy", stop_before_retries),
        ("off_policy", stop_in_retries),
        ("distillation", stop_before_teacher),
        ("off_policy", stop_before_update),
    ],
)
def test_a_run_that_stopped_has_the_same_bits(
    workspace: Path, run: str, stop: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{run}-{stop.__name__}"
    with monkeypatch.context() as patch:
        stop(patch)
        with pytest.raises(UserError, match="drawn for the test"):
            train(workspace, name, quick(*RUNS[run]))
    train(workspace, name, None, resume=True)
    for table in (*TABLES, "retries"):
        if table not in ("stages", "runs"):
            assert rows(workspace, table, name) == rows(workspace, table, run), table
    assert sha256(workspace, name) == sha256(workspace, run)


def test_a_replay_adopts_the_retries(workspace: Path) -> None:
    storage = open_storage(workspace)
    for run in ("off_policy", "distillation"):
        plan = plan_replay(storage.ledger.get_run(run), "1", ("distillation.top_k=3",), f"again-{run}")
        replay(plan, storage, SilentReporter())
        assert rows(workspace, "retries", f"again-{run}") == rows(workspace, "retries", run)
        asked = [row["rollout_id"] for row in rows(workspace, "teacher_targets", run)]
        assert [row["rollout_id"] for row in rows(workspace, "teacher_targets", f"again-{run}")] == asked


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (("reward.turn=information_gain",), "retries are of another policy"),
        (("rollout.retries_use=distillation", "distillation.gate=sigmoid"), "takes retries into L_SD whole"),
        (("rollout.retries_use=distillation", "distillation.enabled=false"), "takes retries into L_SD whole"),
        (("rollout.retries_use=distillation", "hindsight.homogeneous=skip"), "the one block of a group that failed"),
        (("rollout.retries_use=distillation", "hindsight.members=correct_only"), "the one block of a group"),
    ],
)
def test_what_does_not_go_together_is_refused(lines: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        quick("rollout.retries=1", *lines)


def test_plain_grpo_can_retry_too() -> None:
    settings: Settings = quick("rollout.retries=1", "distillation.enabled=false")
    assert settings.rollout.retries == 1
