"""Retries in the objective: both uses against a naive objective of their own, and how steps are cut around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.records.retry import RetriedGroup
from schemas.records.rollout import Group, Rollout
from schemas.settings.root import RetriesUse
from sdsearch.credit.retried_groups import as_groups
from sdsearch.credit.retries import retry_blocks, score_with_retries
from sdsearch.training.logprobs import sampled_tensor
from sdsearch.training.loss import ScoredRollout
from sdsearch.training.training_set import training_rollouts
from sdsearch.training.update import optimiser_steps
from tests.golden.cases import Case, assert_same_loss, make_blocks, make_case, make_settings, teach
from tests.golden.naive import Naive, NaiveLoss, at_sampled
from tests.support.builders import make_groups, make_tokenizer

NUM_SIBLINGS = 3


def is_retry(rollout: Rollout) -> bool:
    return rollout.index >= NUM_SIBLINGS


@dataclass(frozen=True)
class WithRetries(Naive):
    """The naive objective over siblings and retries; `groups` holds both, `use` says what the latter are for."""

    use: RetriesUse = "off_policy"

    def loss(self, model: Any, members: Sequence[tuple[Group, Rollout]] | None = None) -> NaiveLoss:
        everyone = [(group, rollout) for group in self.groups for rollout in group.rollouts]
        return super().loss(model, members or everyone)

    def advantage(self, group: Group, rollout: Rollout) -> float:
        if self.use == "distillation":
            if is_retry(rollout):
                return 0.0
            compared = [other.id for other in group.rollouts if not is_retry(other)]
        else:
            compared = [other.id for other in group.rollouts]
        earned = [score.reward for score in self.scores if score.rollout_id in compared]
        (own,) = [score.reward for score in self.scores if score.rollout_id == rollout.id]
        return 0.0 if len(set(earned)) == 1 else (own - mean(earned)) / (stdev(earned) + 1e-6)

    def _share(self, rollout: Rollout, members: Sequence[Rollout]) -> float:
        if self.use == "off_policy":
            return super()._share(rollout, members)
        return 0.0 if is_retry(rollout) else super()._share(rollout, [m for m in members if not is_retry(m)])

    def _surrogate(self, group: Group, rollout: Rollout, policy: Tensor) -> Tensor:
        """The ratio is of the student without the block to the policy that wrote the token, with it for a retry."""
        grpo, advantage = self.settings.grpo, self.advantage(group, rollout)
        behaviour = torch.tensor(rollout.sampled_logprobs).double()
        now = at_sampled(policy, rollout)
        if grpo.old_logprobs == "trainer":
            before = at_sampled(self.fixed(self.teacher, group.prompt_token_ids, rollout), rollout)
            ratio, weight = torch.exp(now - before), torch.exp(before - behaviour).clamp(max=grpo.importance_cap)
        else:
            ratio = torch.exp(now - behaviour)
            weight = torch.minimum(torch.tensor(1.0), grpo.importance_cap / ratio.detach())
        clipped = torch.clamp(ratio, 1 - grpo.clip_low, 1 + grpo.clip_high)
        return -(torch.min(ratio * advantage, clipped * advantage) * weight).sum()

    def _kl(self, group: Group, rollout: Rollout, policy: Tensor) -> Tensor:
        return torch.zeros((), dtype=torch.float64) if is_retry(rollout) else super()._kl(group, rollout, policy)

    def _divergences(self, group: Group, rollout: Rollout, policy: Tensor) -> list[Tensor]:
        taught = self.use == "distillation" or not is_retry(rollout)
        return super()._divergences(group, rollout, policy) if taught else []


def split(groups: Sequence[Group]) -> tuple[list[Group], list[RetriedGroup]]:
    """The groups without the rollouts that count as retries here, which the first group alone has."""
    siblings = [g.model_copy(update={"rollouts": g.rollouts[:NUM_SIBLINGS]}) for g in groups]
    retries = groups[0].rollouts[NUM_SIBLINGS:]
    return siblings, [RetriedGroup(group_id=groups[0].id, block_text="", block_token_ids=(), rollouts=retries)]


def retried_case(use: RetriesUse, **changes: Any) -> Case:
    settings = make_settings(rollout={"retries": 2, "retries_use": use}, **changes)
    # The first rollout, which is right, goes to the end: a retry is what succeeds.
    made = make_groups(make_tokenizer(), num_groups=2)
    turned = [
        group.model_copy(
            update={
                "rollouts": tuple(
                    rollout.model_copy(update={"index": index, "id": f"{group.id}/{index}"})
                    for index, rollout in enumerate((*group.rollouts[1:], group.rollouts[0]))
                )
            }
        )
        for group in made
    ]
    case = make_case(settings, turned)
    whole = case.naive.groups
    groups, retried = split(whole)
    scores, retry_scores = score_with_retries(groups, retried, use, settings.reward, settings.grpo)
    blocks = make_blocks(make_tokenizer(), groups, scores, settings)
    taught = [*groups, *as_groups(groups, retried)] if use == "distillation" else groups
    tensors, pointers, _ = teach(case.naive.teacher, taught, blocks, settings)
    rollouts = training_rollouts(groups, [*scores, *retry_scores], pointers, tensors, retried, use)
    known = {item.rollout.rollout_id: item for item in case.scored}
    scored = [replace(known[rollout.rollout_id], rollout=rollout) for rollout in rollouts]
    base = {each.name: getattr(case.naive, each.name) for each in fields(Naive)}
    joint = [whole[0], *groups[1:]]
    naive = WithRetries(**{**base, "groups": joint, "scores": [*scores, *retry_scores], "blocks": blocks}, use=use)
    return replace(case, rollouts=rollouts, scored=scored, naive=naive)


@pytest.mark.parametrize("old", ["sampler", "trainer"])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("use", ["off_policy", "distillation"])
def test_the_objective_with_retries(use: RetriesUse, aggregation: str, old: str) -> None:
    case = retried_case(use, grpo={"aggregation": aggregation, "old_logprobs": old, "importance_cap": 1.5})
    naive = case.naive
    assert isinstance(naive, WithRetries)
    retries = [rollout for rollout in case.rollouts if rollout.retry == use]
    assert len(retries) == 2, "of the first group"
    for group in naive.groups:
        for rollout in group.rollouts:
            (ours,) = [each for each in case.rollouts if each.rollout_id == rollout.id]
            assert ours.advantage == pytest.approx(naive.advantage(group, rollout))
    assert any(rollout.advantage > 0 for rollout in retries) == (use == "off_policy")
    assert any(rollout.distilled for rollout in retries) == (use == "distillation")
    assert_same_loss(case)


def test_the_ratio_of_a_retry_is_bounded_and_its_block_is_no_mismatch_of_the_sampler() -> None:
    case = retried_case("off_policy")
    # To the policy with the block the retry's tokens were all but certain, or all but impossible.
    far = [
        replace(item, sampled_N=sampled_tensor([-30.0] * len(item.rollout.sequence.reads)))
        if item.rollout.retry
        else item
        for item in case.scored
    ]
    near, _ = case.ours()
    terms, gradients = replace(case, scored=far).ours()
    assert terms.sampler_max_difference == near.sampler_max_difference < 20
    assert terms.sampler_kl_sum == near.sampler_kl_sum
    assert terms.num_truncated > near.num_truncated
    assert abs(float(terms.policy_loss)) < 50, "exp(30) is not in it"
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())


def test_retries_make_no_step_more_and_follow_their_siblings() -> None:
    case = retried_case("off_policy")
    for per_step, siblings in ((2, [2, 2, 2]), (3, [3, 3]), (6, [6]), (4, [4, 2])):
        update = case.settings.update.model_copy(update={"rollouts_per_step": per_step, "epochs": 1})
        steps = list(optimiser_steps(case.scored, update, case.settings.grpo, 0, 1))
        assert [sum(not m.scored.rollout.retry for m in step) for step in steps] == siblings
        assert sum(len(step) for step in steps) == len(case.scored)
        for step in steps:
            for before, member in pairwise(step):
                if retry := member.scored.rollout.retry:
                    assert retry == "off_policy"
                    assert before.scored.rollout.sequence.context_ids == member.scored.rollout.sequence.context_ids


def test_the_groups_without_a_correct_rollout_get_the_papers_block() -> None:
    tokenizer = make_tokenizer()
    right, wrong = make_groups(tokenizer, num_groups=2)
    wrong = wrong.model_copy(update={"rollouts": (wrong.rollouts[3].model_copy(update={"index": 0}),)})
    settings = make_settings(hindsight={"members": "leave_one_out", "contrast": "flipped"})
    asked = {"seed": 0, "tokenizer": tokenizer, "max_context_tokens": 512, "tags": ("search",)}
    blocks = retry_blocks([right, wrong], settings=settings.hindsight, **asked)  # type: ignore[arg-type]
    assert list(blocks) == [wrong.id]
    (attempt,) = blocks[wrong.id].attempts
    assert (attempt.label, blocks[wrong.id].contrast_token_ids) == ("INCORRECT", ())
    strict = settings.hindsight.model_copy(update={"rho": 1.0})
    both = retry_blocks([right, wrong], settings=strict, **asked)  # type: ignore[arg-type]
    assert list(both) == [right.id, wrong.id], "F1 of 1 is not above 1"


def test_scored_rollouts_of_siblings_are_untouched_by_none() -> None:
    case = retried_case("off_policy")
    siblings: list[ScoredRollout] = [item for item in case.scored if item.rollout.retry is None]
    groups, _ = split(case.naive.groups)
    scores, none = score_with_retries(groups, [], "off_policy", case.settings.reward, case.settings.grpo)
    assert none == []
    assert {score.rollout_id for score in scores} == {item.rollout.rollout_id for item in siblings}
