"""Information gain: how far each turn brings the policy towards the golden answer, as the turn's own reward.

The baseline of the other family of step-level credit (IGPO, arXiv 2510.14967): no teacher and no block, but the golden
answer's likelihood, read turn by turn. Shapes: a rollout of `T` turns has `T` answer probabilities and `T` rewards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn
from transformers import PreTrainedTokenizerBase

from schemas.records.rollout import Group, Rollout
from schemas.records.score import Score
from schemas.settings.root import GrpoSettings
from sdsearch.credit.advantage import group_advantages
from sdsearch.credit.scoring import scores_by_group
from sdsearch.model.batching import TokenSequence
from sdsearch.protocol.ports import ActionProtocol
from sdsearch.protocol.tokens import encode, encode_foreign
from sdsearch.training.logprobs import sequence_logprobs
from sdsearch.training.loss_settings import LossSettings


@dataclass(frozen=True)
class AnswerReader:
    """Reads how probable the policy finds a question's golden answers at a point of a rollout."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    protocol: ActionProtocol
    settings: LossSettings
    max_context_tokens: int

    def probabilities(self, group: Group) -> list[tuple[float, ...]]:
        """Return for each rollout the T probabilities of the golden answer: at first and after each turn but the last.

        A probability is the geometric mean over the answer's tokens, exp(mean log p), of the golden answer that is most
        probable there, written as the protocol opens an answer and without any thinking before it. Where the context
        has no room for an answer the probability is the one before.
        """
        answers = [self._written(answer) for answer in group.question.golden_answers]
        cuts = [_ends_of_turns(rollout) for rollout in group.rollouts]
        points = {
            (rollout.token_ids[:end], number): TokenSequence(
                group.prompt_token_ids, (*rollout.token_ids[:end], *opening, *answer), _last(end + len(opening), answer)
            )
            for rollout, ends in zip(group.rollouts, cuts, strict=True)
            for end in ends
            for number, (opening, answer) in enumerate(answers)
            if len(group.prompt_token_ids) + end + len(opening) + len(answer) <= self.max_context_tokens
        }
        read = sequence_logprobs(self.model, list(points.values()), self.settings)
        mean = {key: float(logprob_N.double().mean().exp()) for key, logprob_N in zip(points, read, strict=True)}
        return [
            _filled([[mean.get((r.token_ids[:end], n), math.nan) for n in range(len(answers))] for end in ends])
            for r, ends in zip(group.rollouts, cuts, strict=True)
        ]

    def _written(self, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens that open an answer, and the answer's own."""
        opening = encode(self.tokenizer, self.protocol.answer_opening)
        return tuple(opening), tuple(encode_foreign(self.tokenizer, f" {answer}", self.protocol.tags))


def with_information_gain(
    groups: Sequence[Group], scores: Sequence[Score], reader: AnswerReader, grpo: GrpoSettings, discount: float
) -> list[Score]:
    """Return the scores with what each turn earned, and each turn's advantage.

    A turn that is not the last earns p(after it) - p(before it), and the last one the rollout's reward. All of a
    group's turns are normalised together, as GRPO normalises its rollouts, and a turn's advantage is the discounted sum
    of its own and of those that follow: A_t = sum over k >= t of discount^(k - t) (r_k - mean) / scale. Source: IGPO.
    Ours: the best of several golden answers, and the standard deviation and `grpo.advantage_scale` of the rollouts.
    """
    of_group = scores_by_group(scores)
    probabilities = [reader.probabilities(group) for group in groups]
    rewards = [
        [turn_rewards(own, score.reward) for own, score in zip(of_rollouts, of_group[group.id], strict=True)]
        for group, of_rollouts in zip(groups, probabilities, strict=True)
    ]
    normalised = group_advantages([[r for turns in group for r in turns] for group in rewards], grpo.advantage_scale)
    updated: dict[str, Score] = {}
    for group, of_rollouts, group_rewards, flat in zip(groups, probabilities, rewards, normalised, strict=True):
        values = iter(flat)
        for rollout, score, own, turns in zip(
            group.rollouts, of_group[group.id], of_rollouts, group_rewards, strict=True
        ):
            found = {
                "answer_probabilities": own,
                "turn_rewards": turns,
                "turn_advantages": discounted_sums([next(values) for _ in turns], discount),
            }
            updated[rollout.id] = score.model_copy(update=found)
    return [updated[score.rollout_id] for score in scores]


def turn_rewards(probabilities: Sequence[float], reward: float) -> tuple[float, ...]:
    """Return what each turn earned: the gain that it brought, and the last one the rollout's reward."""
    gains = (after - before for before, after in pairwise(probabilities))
    return (*gains, reward)


def discounted_sums(values: Sequence[float], discount: float) -> tuple[float, ...]:
    """Return for each place the sum of its value and of those that follow, each step discounted once more."""
    sums: list[float] = []
    for value in reversed(values):
        sums.append(value + discount * (sums[-1] if sums else 0.0))
    return tuple(reversed(sums))


def _ends_of_turns(rollout: Rollout) -> list[int]:
    """Return how many of its tokens the policy has before it in each turn: 0, and after each turn but the last."""
    return [rollout.num_tokens_before(turn) for turn in range(len(rollout.turns))]


def _last(start: int, answer: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(start, start + len(answer)))


def _filled(points: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the best answer's probability at each point; where none was read, the one before (0 at first)."""
    best: list[float] = []
    for of_answers in points:
        read = [value for value in of_answers if not math.isnan(value)]
        best.append(max(read) if read else best[-1] if best else 0.0)
    return tuple(best)
