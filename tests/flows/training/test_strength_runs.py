"""Runs whose strength follows what is measured: stored step by step, and the same bits after any stop."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import sdsearch
from flows.console.errors import UserError
from flows.replay.plan import plan_replay
from flows.replay.work import replay
from flows.run.live import Runtime
from flows.run.progress import SilentReporter
from flows.training.fork import fork_run
from flows.training.job import open_storage
from flows.training.trainer import InProcessTrainer
from tests.flows.training.test_training import TABLES, quick, rows, train

pytestmark = pytest.mark.long

SHARE = "distillation.strength={kind='gradient_share', share=0.7, every=2}"
RETIRE = "distillation.schedule={kind='retire', gap='entropy', closed=0.9, smoothing=0.0}"
CHOSEN = (SHARE, RETIRE, "distillation.clip=own", "distillation.warmup_iterations=0", "iterations=4")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strength")
    train(folder, "whole", quick(*CHOSEN))
    return folder


def iterations(workspace: Path, run: str) -> list[dict]:
    return [row for row in rows(workspace, "v_iterations", run) if row["iteration"]]


def test_each_step_holds_its_alpha_and_what_was_measured(workspace: Path) -> None:
    steps = sorted(rows(workspace, "update_metrics", "whole"), key=lambda row: row["step"])
    first = steps[0]
    assert first["schedule_weight"] == 1.0
    assert first["grad_norm_sd"] == pytest.approx(0.7 * first["grad_norm_grpo"])
    for step in steps:
        if step["alpha"]:
            assert step["alpha"] == pytest.approx(
                0.7 * step["schedule_weight"] * step["smoothed_norm_grpo"] / step["smoothed_norm_sd"]
            )
            assert 0 < step["sd_clip_factor"] <= 1
    assert [step["gap_kind"] for step in steps] == ["entropy"] * len(steps)
    left = [step["schedule_weight"] for step in steps]
    assert left == sorted(left, reverse=True)
    assert len(set(left)) > 1
    for row in iterations(workspace, "whole"):
        own = [step for step in steps if step["iteration"] == row["iteration"]]
        assert (row["alpha"], row["schedule_weight"]) == (own[-1]["alpha"], own[-1]["schedule_weight"])


def test_a_teacher_that_is_retired_is_not_asked_again(workspace: Path) -> None:
    """`closed` is .9: the gap falls below it, and from the next iteration on there is no credit."""
    alphas = {row["iteration"]: row["alpha"] for row in iterations(workspace, "whole")}
    asked = {row["iteration"] for row in rows(workspace, "query_credit", "whole")}
    retired = [iteration for iteration, alpha in alphas.items() if alpha == 0.0]
    assert retired, alphas
    assert asked == set(range(1, min(retired) + 1)), "the iteration that closed it was asked"


@pytest.mark.parametrize(
    ("work", "iteration"), [("compute_teacher", 2), ("update_weights", 2), ("rollout_loop", 3), ("update_weights", 3)]
)
def test_a_run_that_stopped_anywhere_has_the_same_bits(
    workspace: Path, work: str, iteration: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Runtime if work == "rollout_loop" else InProcessTrainer
    real = getattr(owner, work)

    def fails(self: object, first: Any, *arguments: Any) -> object:
        if (first + 1 if work == "rollout_loop" else first.iteration) == iteration:
            raise UserError("drawn for the test")
        return real(self, first, *arguments)

    run = f"{work}-{iteration}"
    with monkeypatch.context() as patch:
        patch.setattr(owner, work, fails)
        with pytest.raises(UserError, match="drawn for the test"):
            train(workspace, run, quick(*CHOSEN))
    train(workspace, run, None, resume=True)
    for table in TABLES:
        if table != "stages":
            assert rows(workspace, table, run) == rows(workspace, table, "whole"), table


def test_updates_that_are_taken_again_from_an_earlier_checkpoint_are_the_same(workspace: Path) -> None:
    train(workspace, "short", quick(*CHOSEN))
    storage = open_storage(workspace)
    for version in (3, 4):
        shutil.rmtree(storage.checkpoints.path("short", version))
    train(workspace, "short", None, resume=True)
    for table in ("update_metrics", "query_credit", "runs", "evaluation_answers"):
        assert rows(workspace, table, "short") == rows(workspace, table, "whole"), table


def test_a_fork_goes_on_from_what_its_source_measured(workspace: Path) -> None:
    storage = open_storage(workspace)
    fork_run(storage, "whole", "branch", quick(*CHOSEN, "iterations=6"))
    train(workspace, "branch", None, resume=True)
    last = max(rows(workspace, "update_metrics", "whole"), key=lambda row: row["step"])
    steps = sorted(rows(workspace, "update_metrics", "branch"), key=lambda row: row["step"])
    assert steps[-1]["step"] > last["step"]
    for name in ("smoothed_norm_grpo", "smoothed_gap", "largest_gap", "retired_to"):
        assert {step[name] for step in steps if step["step"] > last["step"]} == {last[name]}, name


def test_a_replay_asks_the_teacher_of_every_iteration_whatever_faded(workspace: Path) -> None:
    storage = open_storage(workspace)
    plan = plan_replay(storage.ledger.get_run("whole"), "1:4", ["hindsight.labels=none"], "asked")
    replay(plan, storage, SilentReporter())
    assert {row["iteration"] for row in rows(workspace, "query_credit", "asked")} == {1, 2, 3, 4}


def test_the_loss_by_hand_has_the_alpha_that_was_in_force(workspace: Path) -> None:
    iteration = sdsearch.open_run(workspace, "whole").iteration(2)
    reported = iteration.records().update.steps[0]
    again = iteration.loss()
    assert again.alpha == reported.alpha != 0.1
    assert again.loss == pytest.approx(reported.loss, abs=1e-5)


LOG_RATIO = "distillation.schedule={kind='retire', gap='log_ratio'}"


def test_what_calls_a_rollout_correct_is_an_input_where_the_log_ratio_retires_it(workspace: Path) -> None:
    train(workspace, "ratio", quick(LOG_RATIO, "distillation.warmup_iterations=0", "iterations=1"))
    (step, *_) = sorted(rows(workspace, "update_metrics", "ratio"), key=lambda row: row["step"])
    (figures,) = iterations(workspace, "ratio")
    assert step["gap_kind"] == "log_ratio"
    assert step["smoothed_gap"] == pytest.approx(figures["log_ratio_correct"] - figures["log_ratio_incorrect"])
