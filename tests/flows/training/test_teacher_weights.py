"""Runs whose teacher has other weights than the policy: stored, the same bits after a stop, and replayed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import sdsearch
from flows.console.errors import UserError
from flows.replay.plan import plan_replay
from flows.replay.work import replay
from flows.run.averages import read_average
from flows.run.policy import LivePolicy
from flows.run.progress import SilentReporter
from flows.settings.load import stored_settings
from flows.training.fork import fork_run
from flows.training.job import open_storage
from flows.training.trainer import InProcessTrainer
from sdsearch.model.policy import trainable_parameters
from storage.storage import Storage
from tests.flows.training.test_training import TABLES, quick, rows, train

pytestmark = pytest.mark.long

CHOSEN = ("distillation.warmup_iterations=0", "iterations=4", "evaluation.every=9", "storage.keep_checkpoints=9")
EMA = ("distillation.teacher=ema", "distillation.ema_decay=0.6")
LORA = ("model.tuning=lora", "model.lora_rank=4", "model.lora_targets=['q_proj', 'down_proj']")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    train(folder, "live", quick(*CHOSEN))
    train(folder, "full", quick(*CHOSEN, *EMA))
    train(folder, "lora", quick(*CHOSEN, *EMA, *LORA))
    return folder


def ask(storage: Storage, source: str, iterations: str, *overrides: str, run: str) -> None:
    replay(plan_replay(storage.ledger.get_run(source), iterations, overrides, run), storage, SilentReporter())


def credit(workspace: Path, run: str, iteration: int) -> list[dict[str, Any]]:
    return [row for row in rows(workspace, "query_credit", run) if row["iteration"] == iteration]


@pytest.mark.parametrize("run", ["full", "lora"])
def test_a_checkpoint_has_the_average_of_the_policies_up_to_it(workspace: Path, run: str) -> None:
    storage = open_storage(workspace)
    policy = LivePolicy(stored_settings(storage.ledger.get_run(run)), run, storage.checkpoints)
    expected: dict[str, torch.Tensor] = {}
    for version in range(5):
        policy.move_to(version)
        weights = {name: p.detach().double() for name, p in trainable_parameters(policy.model).items()}
        expected = {n: 0.6 * expected[n] + 0.4 * w for n, w in weights.items()} if version else weights
        stored = read_average(storage.checkpoints.path(run, version)) if version else None
        if stored:
            assert stored.decay == 0.6
            assert stored.weights.keys() == weights.keys()
            for name, tensor in stored.weights.items():
                torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-7)
    assert not read_average(storage.checkpoints.path("live", 1)), "kept where it is read alone"


def test_the_first_iteration_has_one_policy_and_the_later_ones_their_average(workspace: Path) -> None:
    assert credit(workspace, "full", 1) == credit(workspace, "live", 1)
    averaged, live = (credit(workspace, run, 2) for run in ("full", "live"))
    assert [row["student_logprob"] for row in averaged] == [row["student_logprob"] for row in live]
    assert [row["teacher_logprob"] for row in averaged] != [row["teacher_logprob"] for row in live]


@pytest.mark.parametrize(("run", "work"), [("full", "update_weights"), ("lora", "compute_teacher")])
def test_a_run_that_stopped_has_the_same_bits(
    workspace: Path, run: str, work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(InProcessTrainer, work)

    def fails(self: object, attempt: Any, *arguments: Any) -> object:
        if attempt.iteration == 3:
            raise UserError("drawn for the test")
        return real(self, attempt, *arguments)

    stopped = f"{run}-stopped"
    with monkeypatch.context() as patch:
        patch.setattr(InProcessTrainer, work, fails)
        with pytest.raises(UserError, match="drawn for the test"):
            train(workspace, stopped, quick(*CHOSEN, *EMA, *(LORA if run == "lora" else ())))
    train(workspace, stopped, None, resume=True)
    for table in TABLES:
        if table != "stages":
            assert rows(workspace, table, stopped) == rows(workspace, table, run), table
    checkpoints = open_storage(workspace).checkpoints
    ours, theirs = (read_average(checkpoints.path(each, 4)) for each in (stopped, run))
    assert ours
    assert theirs
    assert all(torch.equal(tensor, theirs.weights[name]) for name, tensor in ours.weights.items())


def test_updates_that_are_taken_again_from_an_earlier_checkpoint_are_the_same(workspace: Path) -> None:
    train(workspace, "short", quick(*CHOSEN, *EMA))
    storage = open_storage(workspace)
    for version in (3, 4):
        shutil.rmtree(storage.checkpoints.path("short", version))
    train(workspace, "short", None, resume=True)
    for table in ("update_metrics", "query_credit", "runs"):
        assert rows(workspace, table, "short") == rows(workspace, table, "full"), table


def test_a_replay_takes_the_stored_average_or_makes_it_from_the_checkpoints(workspace: Path) -> None:
    storage = open_storage(workspace)
    ask(storage, "full", "4", "distillation.support=full", run="stored")
    ours, theirs = credit(workspace, "stored", 4), credit(workspace, "full", 4)
    assert [row["teacher_logprob"] for row in ours] == [row["teacher_logprob"] for row in theirs]
    ask(storage, "full", "4", "distillation.ema_decay=0.3", run="another")
    by_hand = sdsearch.open_run(workspace, "full").policy(3)
    settings = quick(*CHOSEN, "distillation.teacher=ema", "distillation.ema_decay=0.3")
    records = sdsearch.open_run(workspace, "full").iteration(4).records()
    again = sdsearch.compute_teacher(by_hand, records.groups, records.blocks, settings)
    assert sorted(item.teacher_logprob for item in again.credit) == sorted(
        row["teacher_logprob"] for row in credit(workspace, "another", 4)
    )
    assert [row["teacher_logprob"] for row in credit(workspace, "another", 4)] != [
        row["teacher_logprob"] for row in ours
    ]


def test_a_replay_of_a_run_that_kept_no_average(workspace: Path) -> None:
    storage = open_storage(workspace)
    ask(storage, "live", "2", *EMA, run="averaged")
    # Two versions: both runs have sampled and taught the same up to here.
    assert credit(workspace, "averaged", 2) == credit(workspace, "full", 2)
    shutil.rmtree(storage.checkpoints.path("live", 1))
    with pytest.raises(UserError, match=r"averages versions 0:3 of run 'live', which does not have 1 any more"):
        ask(storage, "live", "4", *EMA, run="refused")


def test_a_replay_with_the_initial_teacher_against_the_starting_weights_by_hand(workspace: Path) -> None:
    storage = open_storage(workspace)
    for run in ("full", "lora"):
        ask(storage, run, "3", "distillation.teacher=initial", run=f"{run}-initial")
        source = sdsearch.open_run(workspace, run)
        records = source.iteration(3).records()
        live = quick(*CHOSEN, *(LORA if run == "lora" else ()))
        start = sdsearch.compute_teacher(source.policy(0), records.groups, records.blocks, live)
        asked = credit(workspace, f"{run}-initial", 3)
        replayed = {(row["rollout_id"], row["position"]): row["teacher_logprob"] for row in asked}
        for item in start.credit:
            assert replayed[item.rollout_id, item.position] == pytest.approx(item.teacher_logprob, abs=1e-5)


def test_a_fork_goes_on_with_the_average_or_begins_one(workspace: Path) -> None:
    storage = open_storage(workspace)
    longer = quick(*CHOSEN, *EMA, "iterations=5")
    for source in ("full", "live"):
        fork_run(storage, source, f"fork-of-{source}", longer)
        train(workspace, f"fork-of-{source}", None, resume=True)
        kept = read_average(storage.checkpoints.path(f"fork-of-{source}", 5))
        before = read_average(storage.checkpoints.path(source, 4))
        policy = LivePolicy(longer, f"fork-of-{source}", storage.checkpoints, 4)
        policy.move_to(4)
        start = before.weights if before else {n: p.detach() for n, p in trainable_parameters(policy.model).items()}
        policy.move_to(5)
        assert kept
        for name, parameter in trainable_parameters(policy.model).items():
            torch.testing.assert_close(kept.weights[name], 0.6 * start[name] + 0.4 * parameter.detach())
