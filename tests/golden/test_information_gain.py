"""Turn rewards by information gain, against plain forward passes and sums written out anew."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.records.rollout import Group, Rollout
from schemas.records.score import Score
from sdsearch.protocol.parsing import TAG_PROTOCOL
from sdsearch.training.information_gain import AnswerReader, discounted_sums, turn_rewards, with_information_gain
from sdsearch.training.loss_settings import LossSettings
from sdsearch.training.training_set import training_rollouts
from tests.golden.cases import Case, assert_same_loss, make_case, make_settings, teach
from tests.golden.naive import Naive, at_sampled
from tests.support.builders import make_groups, make_tokenizer

DISCOUNT = 0.7


class ByTurn(Naive):
    """The naive objective with an advantage of each turn's own."""

    def advantages(self, group: Group, rollout: Rollout) -> list[float]:
        """The advantage of each sampled token, from the group's turns, all normalised together."""
        rewards = {other.id: self.turn_rewards(group, other) for other in group.rollouts}
        everything = [reward for of_rollout in rewards.values() for reward in of_rollout]
        own = [(reward - mean(everything)) / (stdev(everything) + 1e-6) for reward in rewards[rollout.id]]
        credit = []
        for number, turn in enumerate(rollout.turns):
            total = sum(value * DISCOUNT**step for step, value in enumerate(own[number:]))
            credit += [total] * len(turn.generation.token_ids)
        return credit

    def turn_rewards(self, group: Group, rollout: Rollout) -> list[float]:
        (score,) = [score for score in self.scores if score.rollout_id == rollout.id]
        seen: list[int] = []
        found = [self.probability(group, seen)]
        for turn in rollout.turns[:-1]:
            seen += [*turn.generation.token_ids, *(turn.observation.token_ids if turn.observation else ())]
            found.append(self.probability(group, seen))
        return [later - earlier for earlier, later in pairwise(found)] + [score.reward]

    def probability(self, group: Group, seen: list[int]) -> float:
        """The golden answer's likelihood per token behind an opened answer, the best of the golden answers."""
        tokenizer = make_tokenizer()
        best = 0.0
        for answer in group.question.golden_answers:
            before = [*group.prompt_token_ids, *seen, *tokenizer.encode("<answer>", add_special_tokens=False)]
            ids = tokenizer.encode(f" {answer}", add_special_tokens=False)
            with torch.no_grad():
                logits = self.teacher(input_ids=torch.tensor([before + ids])).logits[0].double()
            logprobs = torch.log_softmax(logits / self.settings.rollout.temperature, -1)
            read = [float(logprobs[len(before) - 1 + place, token]) for place, token in enumerate(ids)]
            best = max(best, float(torch.tensor(read).double().mean().exp()))
        return best

    def _surrogate(self, group: Group, rollout: Rollout, policy: Tensor) -> Tensor:
        grpo, credit = self.settings.grpo, torch.tensor(self.advantages(group, rollout))
        ratio = torch.exp(at_sampled(policy, rollout) - torch.tensor(rollout.sampled_logprobs).double())
        weight = torch.minimum(torch.tensor(1.0), grpo.importance_cap / ratio.detach())
        clipped = torch.clamp(ratio, 1 - grpo.clip_low, 1 + grpo.clip_high)
        return -(torch.min(ratio * credit, clipped * credit) * weight).sum()


def reader_of(case: Case, max_context_tokens: int = 10_000) -> AnswerReader:
    return AnswerReader(
        case.naive.teacher, make_tokenizer(), TAG_PROTOCOL, LossSettings.of(case.settings), max_context_tokens
    )


def turn_case(**changes: Any) -> tuple[Case, list[Score]]:
    """A case whose rollouts have the advantages of their turns, and the scores that say so."""
    settings = make_settings(reward={"turn": "information_gain", "turn_discount": DISCOUNT}, **changes)
    case = make_case(settings, make_groups(make_tokenizer(), num_groups=2))
    groups = case.naive.groups
    scores = with_information_gain(groups, case.naive.scores, reader_of(case), settings.grpo, DISCOUNT)
    tensors, pointers, _ = teach(case.naive.teacher, groups, case.naive.blocks, settings)
    rollouts = training_rollouts(groups, scores, pointers, tensors)
    scored = [replace(item, rollout=rollout) for item, rollout in zip(case.scored, rollouts, strict=True)]
    naive = ByTurn(**{each.name: getattr(case.naive, each.name) for each in fields(Naive)})
    return replace(case, rollouts=rollouts, scored=scored, naive=naive), scores


def test_each_turn_has_the_advantage_of_its_gain_and_the_objective_takes_it() -> None:
    case, scores = turn_case()
    naive = case.naive
    assert isinstance(naive, ByTurn)
    rollouts = [(group, rollout) for group in naive.groups for rollout in group.rollouts]
    assert any(len(rollout.turns) > 2 for _, rollout in rollouts)
    for (group, rollout), score, trained in zip(rollouts, scores, case.rollouts, strict=True):
        assert score.turn_rewards == pytest.approx(naive.turn_rewards(group, rollout), rel=1e-5, abs=1e-9)
        assert len(score.answer_probabilities) == len(score.turn_advantages) == len(rollout.turns)
        assert trained.advantages == pytest.approx(naive.advantages(group, rollout), rel=1e-4)
    assert len({value for score in scores for value in score.turn_advantages}) > len(scores), "it tells turns apart"
    assert_same_loss(case)


def test_a_group_of_equal_rewards_learns_from_its_turns() -> None:
    """What an outcome reward cannot give: where all fail alike, the turns that came closer are favoured."""
    case, _ = turn_case()
    failed = [score.model_copy(update={"reward": 0.0, "advantage": 0.0}) for score in case.naive.scores]
    scores = with_information_gain(case.naive.groups, failed, reader_of(case), case.settings.grpo, 1.0)
    assert all(score.has_advantage for score in scores if len(score.turn_advantages) > 1)
    assert not any(score.has_advantage for score in failed)


def test_where_no_answer_fits_the_turn_gains_nothing() -> None:
    case, scores = turn_case()
    group = case.naive.groups[0]
    index, longest = max(enumerate(group.rollouts), key=lambda pair: len(pair[1].token_ids))
    before_last = len(longest.token_ids) - len(longest.turns[-1].generation.token_ids)
    room = len(group.prompt_token_ids) + before_last
    read = reader_of(case, max_context_tokens=room).probabilities(group)[index]
    assert read[:-1] == pytest.approx(scores[index].answer_probabilities[:-1])
    assert read[-1] == read[-2] != scores[index].answer_probabilities[-1]


def test_sums_and_rewards_by_hand() -> None:
    assert turn_rewards((0.1, 0.4, 0.3), 1.0) == pytest.approx((0.3, -0.1, 1.0))
    assert turn_rewards((0.2,), 0.5) == (0.5,)
    assert discounted_sums((1.0, 2.0, 4.0), 0.5) == (3.0, 4.0, 4.0)
    assert discounted_sums((1.0, 2.0), 0.0) == (1.0, 2.0)
