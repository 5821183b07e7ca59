"""The method's steps by hand give what the run's own stages stored, and its gradient is the loss's."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import sdsearch
from flows.api.workspace import Run
from flows.replay.plan import plan_replay
from flows.replay.work import replay
from flows.run.progress import SilentReporter
from schemas.records.rollout import Group
from storage.storage import Storage
from storage.workspace import Workspace

pytestmark = pytest.mark.slow
SAME = 1e-5
"""Relative difference of a loss computed again: none on the machine and with the threads that trained."""


@pytest.fixture
def run(folder: Path) -> Run:
    return sdsearch.open_run(folder / "workspace", "first")


def test_the_loss_computed_again_is_what_the_first_step_reported(run: Run) -> None:
    for number in run.iterations:
        it = run.iteration(number)
        reported, again = it.records().update.steps[0], it.loss()
        assert again.num_rollouts == reported.num_rollouts == 4
        assert again.num_distilled_tokens == reported.num_distilled_tokens
        assert again.alpha == reported.alpha == (0.0 if number == 1 else 0.1)
        for name in ("loss", "policy_loss", "kl", "sd_loss"):
            assert getattr(again, name) == pytest.approx(getattr(reported, name), rel=SAME, abs=1e-9), name


def test_the_loss_of_a_group_is_that_of_the_step_that_had_it_alone(run: Run) -> None:
    it = run.iteration(3)
    losses = [it.loss(group=group.id).loss for group in it.records().groups]
    reported = it.records().update.steps[0].loss
    assert any(loss == pytest.approx(reported, rel=SAME) for loss in losses)
    assert losses[0] != losses[1]


def tokens_of(groups: Sequence[Group]) -> list[tuple[int, ...]]:
    return [rollout.token_ids for group in groups for rollout in group.rollouts]


def test_a_runs_rollouts_scores_blocks_and_credit_come_out_again(run: Run) -> None:
    records, policy = run.iteration(3).records(), run.policy(2)
    questions = [group.question for group in records.groups]
    groups = sdsearch.roll_out(policy, questions, run.retriever(), iteration=3)
    assert tokens_of(groups) == tokens_of(records.groups)
    assert [group.prompt_token_ids for group in groups] == [group.prompt_token_ids for group in records.groups]
    scores = sdsearch.score_groups(groups, run.settings)
    assert scores == records.scores
    blocks = sdsearch.build_blocks(policy, groups, scores)
    assert blocks == records.blocks
    teacher = sdsearch.compute_teacher(policy, groups, blocks)
    assert [token.jsd for token in teacher.credit] == pytest.approx([token.jsd for token in records.credit], abs=1e-6)
    loss = sdsearch.compute_loss(policy, groups, scores, teacher)
    assert loss.loss == pytest.approx(
        sdsearch.compute_loss(policy, records.groups, scores, run.iteration(3).teacher()).loss
    )


def test_other_settings_make_other_blocks_and_other_credit(run: Run) -> None:
    records, policy = run.iteration(3).records(), run.policy(2)
    other = sdsearch.load_settings("tiny", ["hindsight.labels=none"])
    blocks = sdsearch.build_blocks(policy, records.groups, records.scores, other)
    assert all(attempt.label is None for block in blocks for attempt in block.attempts)
    credit = sdsearch.compute_teacher(policy, records.groups, blocks, other).credit
    assert [token.position for token in credit] == [token.position for token in records.credit]
    assert [token.jsd for token in credit] != [token.jsd for token in records.credit]


def test_backward_leaves_the_gradient_of_the_loss(run: Run) -> None:
    it, policy = run.iteration(3), run.policy(2)
    groups, scores, teacher = it.records().groups, it.records().scores, it.teacher()
    plain = sdsearch.compute_loss(policy, groups, scores, teacher)
    assert all(parameter.grad is None for parameter in policy.model.parameters())
    with_gradient = sdsearch.compute_loss(policy, groups, scores, teacher, backward=True)
    assert with_gradient.loss == pytest.approx(plain.loss, rel=SAME)
    gradients = [parameter.grad for parameter in policy.model.parameters() if parameter.grad is not None]
    squared = float(sum((gradient.double() ** 2).sum() for gradient in gradients))
    size = 1e-4 / squared**0.5
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.sub_(size * parameter.grad)
    lower = sdsearch.compute_loss(policy, groups, scores, teacher)
    # At the first order the loss falls by the step's length times the gradient's.
    assert plain.loss - lower.loss == pytest.approx(size * squared, rel=0.1)


def test_without_a_teacher_or_alpha_nothing_is_distilled(run: Run) -> None:
    it, policy = run.iteration(3), run.policy(2)
    groups, scores = it.records().groups, it.records().scores
    grpo = sdsearch.compute_loss(policy, groups, scores)
    assert grpo.sd_loss == 0
    assert grpo.num_distilled_tokens == 0
    off = sdsearch.compute_loss(policy, groups, scores, it.teacher(), alpha=0.0)
    assert off.loss == pytest.approx(grpo.loss, rel=SAME)
    assert sdsearch.compute_loss(policy, groups, scores, it.teacher()).sd_loss > 0


def test_a_policy_from_settings_alone_rolls_out(folder: Path, tmp_path: Path) -> None:
    settings = sdsearch.load_settings("tiny", ["seed=4"])
    policy = sdsearch.load_policy(settings)
    questions = sdsearch.load_questions(settings, "dev")[:2]
    retriever = sdsearch.open_retriever(settings, folder / "workspace")
    greedy = sdsearch.roll_out(policy, questions, retriever, group_size=2, temperature=0.0)
    assert [len(group.rollouts) for group in greedy] == [2, 2]
    assert all(group.rollouts[0].token_ids == group.rollouts[1].token_ids for group in greedy), "nothing is drawn"
    assert len(sdsearch.score_groups(greedy, settings)) == 4


def test_a_replay_has_its_sources_weights_and_no_update(run: Run, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "workspace", tmp_path / "workspace")
    storage = Storage(Workspace(tmp_path / "workspace"))
    plan = plan_replay(storage.ledger.get_run("first"), "3:3", ["hindsight.labels=none"], "what-if")
    replay(plan, storage, SilentReporter())
    again = sdsearch.open_run(tmp_path / "workspace", "what-if")
    it = again.iteration(3)
    assert again.versions == run.versions
    assert it.records().groups == run.iteration(3).records().groups
    assert it.loss().policy_loss == pytest.approx(run.iteration(3).loss().policy_loss, rel=SAME)
    assert it.loss().sd_loss != run.iteration(3).loss().sd_loss
    with pytest.raises(sdsearch.UserError, match="stage 'update' of iteration 3 of run 'what-if' is not done"):
        _ = it.records().update
