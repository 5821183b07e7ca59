"""Groups that grpo.filter leaves out: the objective against a naive one, and the steps that replacements share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch

from schemas.records.rollout import Group, Rollout
from schemas.settings.root import RewardSettings
from sdsearch.credit.filtering import mark_filtered, num_teaching
from sdsearch.credit.scoring import score_groups
from sdsearch.training.optimiser import make_optimiser
from sdsearch.training.training_set import training_rollouts
from sdsearch.training.update import optimiser_steps, update_policy
from tests.golden.cases import Case, assert_same_loss, make_case, make_settings, teach
from tests.golden.naive import Naive
from tests.support.builders import make_groups, make_tokenizer


@dataclass(frozen=True)
class Filtered(Naive):
    """The naive objective, whose policy loss and KL are over groups in which rewards differ."""

    def _has_spread(self, rollout: Rollout) -> bool:
        return len({score.reward for score in self.scores if score.group_id == rollout.group_id}) > 1

    def _share(self, rollout: Rollout, members: Sequence[Rollout]) -> float:
        left = [member for member in members if self._has_spread(member)]
        return super()._share(rollout, left) if self._has_spread(rollout) else 0.0


def hopeless(group: Group) -> Group:
    """The group with a question that none of its rollouts answers."""
    return group.model_copy(update={"question": group.question.model_copy(update={"golden_answers": ("nowhere",)})})


def filtered_case(**changes: Any) -> Case:
    grpo = {"filter": "zero_advantage", **changes.pop("grpo", {})}
    settings = make_settings(grpo=grpo, **changes)
    first, second, third = make_groups(make_tokenizer(), num_groups=3)
    case = make_case(settings, [first, hopeless(second), third])
    scores = mark_filtered(case.naive.scores, settings.grpo)
    tensors, pointers, _ = teach(case.naive.teacher, case.naive.groups, case.naive.blocks, settings)
    rollouts = training_rollouts(case.naive.groups, scores, pointers, tensors)
    scored = [replace(item, rollout=rollout) for item, rollout in zip(case.scored, rollouts, strict=True)]
    naive = Filtered(**{each.name: getattr(case.naive, each.name) for each in fields(Naive)})
    return replace(case, rollouts=rollouts, scored=scored, naive=naive)


@pytest.mark.parametrize("old", ["sampler", "trainer"])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_a_group_that_is_left_out_keeps_its_distillation(aggregation: str, old: str) -> None:
    case = filtered_case(grpo={"aggregation": aggregation, "old_logprobs": old})
    out = [rollout for rollout in case.rollouts if not rollout.in_policy_loss]
    assert {rollout.rollout_id.rpartition("/")[0] for rollout in out} == {case.naive.groups[1].id}
    assert any(rollout.distilled for rollout in out), "it has query tokens"
    assert_same_loss(case)


def test_it_moves_the_policy_by_its_distillation_alone() -> None:
    case = filtered_case()
    alone = replace(case, scored=[item for item in case.scored if not item.rollout.in_policy_loss])
    terms, gradients = alone.ours()
    assert float(terms.policy_loss) == float(terms.kl) == 0.0
    assert float(terms.sd_loss) > 0
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 0
    undistilled = [replace(item, rollout=replace(item.rollout, distilled=())) for item in alone.scored]
    terms, gradients = replace(case, scored=undistilled).ours()
    assert int(terms.num_read) == 0, "what has no gradient is not forwarded, in spite of the KL"
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) == 0


def test_a_step_of_nothing_but_such_groups_is_taken() -> None:
    case = filtered_case()
    alone = [rollout for rollout in case.rollouts if not rollout.in_policy_loss]
    optimiser = make_optimiser(case.policy, case.settings.update)
    (report,) = update_policy(case.policy, case.frozen, optimiser, alone, case.settings, iteration=1, steps_done=0)
    assert (report.policy_loss, report.kl) == (0.0, 0.0)
    assert report.loss == pytest.approx(report.alpha * report.sd_loss)
    assert report.grad_norm > 0


def test_marks() -> None:
    first, second = make_groups(make_tokenizer(), num_groups=2)
    settings = make_settings(grpo={"filter": "resample"})
    groups = [first, hopeless(second)]
    scores = score_groups(groups, RewardSettings(), settings.grpo)
    marked = {score.group_id: score.filtered for score in mark_filtered(scores, settings.grpo)}
    assert marked == {first.id: False, second.id: True}
    assert num_teaching(groups, RewardSettings(), settings.grpo) == 1
    kept = make_settings().grpo
    assert mark_filtered(scores, kept) == scores
    # With turn rewards siblings that earn the same may have advantages.
    turns = [s.model_copy(update={"turn_advantages": (0.0, 0.5)}) if s.group_id == second.id else s for s in scores]
    assert not any(score.filtered for score in mark_filtered(turns, settings.grpo))


def test_a_retry_that_succeeds_keeps_its_group() -> None:
    (group,) = make_groups(make_tokenizer(), num_groups=1)
    settings = make_settings(grpo={"filter": "zero_advantage"})
    scores = score_groups([group], RewardSettings(), settings.grpo)
    siblings, retry = [s.model_copy(update={"advantage": 0.0}) for s in scores[1:]], scores[0]
    assert retry.advantage
    assert all(score.filtered for score in mark_filtered(siblings, settings.grpo))
    assert not any(score.filtered for score in mark_filtered([*siblings, retry], settings.grpo))


@pytest.mark.parametrize(
    ("own", "per_step", "shares"),
    [(2, 8, [12]), (2, 4, [6, 6]), (3, 4, [4, 4, 4]), (2, 3, [4, 4, 4]), (1, 3, [6, 6]), (2, 7, [6, 6])],
)
def test_replacements_share_the_planned_steps(own: int, per_step: int, shares: list[int]) -> None:
    """Three groups of four, of which `own` are the iteration's: it has as many steps as without the others."""
    groups = make_groups(make_tokenizer(), num_groups=3, texts=[["<answer>x</answer>"]] * 4)
    marked = [group.model_copy(update={"replacement": place // own}) for place, group in enumerate(groups)]
    case = make_case(make_settings(), marked)
    update = case.settings.update.model_copy(update={"rollouts_per_step": per_step})
    steps = list(optimiser_steps(case.scored, update, case.settings.grpo, 0, 1))
    assert [len(step) for step in steps] == shares
    assert len(steps) == -(-4 * own // per_step)
    assert {m.scored.rollout.rollout_id for step in steps for m in step} == {r.rollout_id for r in case.rollouts}
    assert torch.tensor([len(step) for step in steps]).sum() == 12
