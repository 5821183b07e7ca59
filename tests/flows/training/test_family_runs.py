"""Each switch of the family through the whole flow: what it stores, what it changes, and after a stop the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

import sdsearch
from flows.console.errors import UserError
from flows.replay.plan import plan_replay
from flows.replay.work import replay
from flows.run.progress import SilentReporter
from flows.training.job import open_storage
from flows.training.trainer import InProcessTrainer
from tests.flows.training.test_training import TABLES, quick, rows, train

pytestmark = pytest.mark.long

SHORT = ("distillation.warmup_iterations=0", "iterations=1", "distillation.alpha=0.9")
SWITCHES = {
    "plain": (),
    "sigmoid": ("distillation.gate=sigmoid", "distillation.gate_options.sharpness=3.0"),
    "influence": ("distillation.gate=influence",),
    "attenuation": ("distillation.gate=attenuation",),
    "outcome": ("distillation.gate=outcome",),
    "advantage": ("distillation.form=advantage", "distillation.gate=outcome"),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    for name, lines in SWITCHES.items():
        train(folder, name, quick(*SHORT, *lines))
    return folder


def sha256(workspace: Path, run: str) -> str:
    (row,) = rows(workspace, "runs", run)
    return str(row["policy_sha256"])


def test_every_switch_is_another_training_of_the_same_rollouts(workspace: Path) -> None:
    assert len({sha256(workspace, run) for run in SWITCHES}) == len(SWITCHES)
    for run in SWITCHES:
        assert rows(workspace, "turns", run) == rows(workspace, "turns", "plain"), run


def test_what_a_gate_leaves_is_stored_and_is_in_the_loss(workspace: Path) -> None:
    for run in ("plain", "sigmoid", "influence", "attenuation", "outcome"):
        tokens = rows(workspace, "v_token_credit", run)
        gates = [token["gate"] for token in tokens]
        assert 0 <= min(gates) <= max(gates) <= 1, run
        assert (set(gates) == {1.0}) == (run == "plain"), run
        of_rollout: dict[str, list[float]] = {}
        for token in tokens:
            of_rollout.setdefault(token["rollout_id"], []).append(token["gate"] * token["divergence"])
        means = [sum(values) / len(values) for values in of_rollout.values()]
        steps = rows(workspace, "update_metrics", run)
        if len(steps) == 1:
            assert steps[0]["sd_loss"] == pytest.approx(sum(means) / len(means), rel=1e-3), run
        (figures,) = (row for row in rows(workspace, "v_iterations", run) if row["iteration"])
        assert figures["mean_gate"] == pytest.approx(sum(gates) / len(gates))


def test_the_gate_by_outcome_agrees_with_the_tables(workspace: Path) -> None:
    for token in rows(workspace, "v_token_credit", "outcome"):
        ratio = token["teacher_logprob"] - token["student_logprob"]
        assert token["gate"] == float(ratio > 0 if token["outcome"] == "CORRECT" else ratio < 0)


def test_the_advantage_form_has_no_loss_and_moves_the_policy_loss(workspace: Path) -> None:
    steps, plain = rows(workspace, "update_metrics", "advantage"), rows(workspace, "update_metrics", "plain")
    assert {step["sd_loss"] for step in steps} == {0.0}
    assert steps[0]["alpha"] == 0.9
    assert [step["policy_loss"] for step in steps] != [step["policy_loss"] for step in plain]
    targets = rows(workspace, "teacher_targets", "advantage")
    assert all(-1 < lean < 1 for target in targets for lean in target["turn_leanings"])
    assert any(lean for target in targets for lean in target["turn_leanings"])
    again = sdsearch.open_run(workspace, "advantage").iteration(1)
    assert again.loss().loss == pytest.approx(again.records().update.steps[0].loss, abs=1e-5)


@pytest.mark.parametrize("run", ["sigmoid", "advantage"])
def test_a_run_that_stopped_before_its_update_has_the_same_bits(
    workspace: Path, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> object:
        raise UserError("drawn for the test")

    with monkeypatch.context() as patch:
        patch.setattr(InProcessTrainer, "update_weights", fails)
        with pytest.raises(UserError, match="drawn for the test"):
            train(workspace, f"{run}-again", quick(*SHORT, *SWITCHES[run]))
    train(workspace, f"{run}-again", None, resume=True)
    for table in TABLES:
        if table not in ("stages", "runs"):
            assert rows(workspace, table, f"{run}-again") == rows(workspace, table, run), table


def test_a_replay_of_the_plain_run_has_the_gates_of_the_trained_ones(workspace: Path) -> None:
    """The rollouts are the same, so the gates are, token by token."""
    storage = open_storage(workspace)
    for run in ("sigmoid", "influence", "attenuation", "outcome"):
        plan = plan_replay(storage.ledger.get_run("plain"), "1", SWITCHES[run], f"as-{run}")
        replay(plan, storage, SilentReporter())
        assert rows(workspace, "v_token_credit", f"as-{run}") == rows(workspace, "v_token_credit", run), run
