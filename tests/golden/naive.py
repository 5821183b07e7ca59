"""A second, deliberately naive objective, written from the formulas: one rollout at a time, full logits, float64.

It shares no code with sdsearch.training.loss, sdsearch.model.batching, sdsearch.credit.teacher or sdsearch.objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from schemas.records.hindsight import HindsightBlock
from schemas.records.rollout import Group, Rollout
from schemas.records.score import Score
from schemas.settings.root import Settings


def divergence_from_formula(p: Tensor, q: Tensor, ids: Sequence[int] | None, kind: str, tail: str) -> Tensor:
    """A position's divergence of teacher `p` and student `q`, probabilities (V,), over the tokens `ids` (None: all)."""
    if ids is not None:
        inside = torch.zeros(len(p), dtype=torch.bool)
        inside[list(ids)] = True
        if tail == "renormalise":
            p, q = p[inside] / p[inside].sum(), q[inside] / q[inside].sum()
        elif not inside.all():
            p, q = torch.stack([*p[inside], p[~inside].sum()]), torch.stack([*q[inside], q[~inside].sum()])
    if kind == "mse":
        return ((p - q) ** 2).sum()
    if kind == "forward_kl":
        return kl_from_formula(p, q)
    if kind == "reverse_kl":
        return kl_from_formula(q, p)
    assert kind == "jsd"
    middle = (p + q) / 2
    return kl_from_formula(p, middle) / 2 + kl_from_formula(q, middle) / 2


def kl_from_formula(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) = sum of p log(p / q)."""
    return (p * torch.log(p / q)).sum()


def most_likely(p: Tensor, k: int) -> list[int]:
    """The `k` tokens of the largest probability."""
    return sorted(range(len(p)), key=p.tolist().__getitem__, reverse=True)[:k]


def logprobs_of(model: nn.Module, context: Sequence[int], rollout: Rollout, temperature: float) -> Tensor:
    """Log-probabilities (T, V) that predict each of the rollout's tokens after `context`."""
    ids = torch.tensor([[*context, *rollout.token_ids]])
    logits = model(input_ids=ids).logits[0].double() / temperature
    return log_softmax(logits, dim=-1)[len(context) - 1 : -1]


def at_sampled(logprobs: Tensor, rollout: Rollout) -> Tensor:
    """The log-probabilities of the tokens that the policy sampled, in order."""
    return torch.stack([logprobs[place, rollout.token_ids[place]] for place in rollout.completion_positions])


@dataclass(frozen=True)
class NaiveLoss:
    """The step's terms and their sum; gradients flow from each."""

    policy_loss: Tensor
    kl: Tensor
    sd_loss: Tensor
    total: Tensor


@dataclass(frozen=True)
class Naive:
    """What the objective reads: the weights that sampled (teacher), those of the KL (reference), and the records."""

    teacher: nn.Module
    reference: nn.Module
    groups: Sequence[Group]
    scores: Sequence[Score]
    blocks: Sequence[HindsightBlock]
    settings: Settings
    alpha: float
    _known: dict[tuple[nn.Module, tuple[int, ...], str], Tensor] = field(default_factory=dict)

    def loss(self, model: nn.Module, members: Sequence[tuple[Group, Rollout]] | None = None) -> NaiveLoss:
        """L_GRPO + alpha * L_SD over one optimiser step that holds `members` (default: every rollout)."""
        if members is None:
            members = [(group, rollout) for group in self.groups for rollout in group.rollouts]
        grpo, temperature = self.settings.grpo, self.settings.rollout.temperature
        zero = torch.zeros((), dtype=torch.float64)
        policy_loss, kl, means = zero, zero, []
        for group, rollout in members:
            policy = logprobs_of(model, group.prompt_token_ids, rollout, temperature)
            share = self._share(rollout, [other for _, other in members])
            policy_loss = policy_loss + self._surrogate(group, rollout, policy) * share
            if grpo.kl_coefficient:
                kl = kl + self._kl(group, rollout, policy) * share
            terms = self._divergences(group, rollout, policy) if self.alpha else []
            if terms:
                means.append(torch.stack(terms).mean())
        sd_loss = torch.stack(means).mean() if means else zero
        return NaiveLoss(policy_loss, kl, sd_loss, policy_loss + grpo.kl_coefficient * kl + self.alpha * sd_loss)

    def fixed(self, model: nn.Module, context: Sequence[int], rollout: Rollout) -> Tensor:
        """Log-probabilities (T, V) of weights that the update leaves alone."""
        key = (model, tuple(context), rollout.id)
        if key not in self._known:
            with torch.no_grad():
                self._known[key] = logprobs_of(model, context, rollout, self.settings.rollout.temperature)
        return self._known[key]

    def _share(self, rollout: Rollout, members: Sequence[Rollout]) -> float:
        grpo = self.settings.grpo
        if grpo.aggregation == "token_mean":
            return 1 / sum(len(member.completion_positions) for member in members)
        own = len(rollout.completion_positions) if grpo.aggregation == "sequence_mean" else grpo.constant_tokens
        return 1 / len(members) / own

    def _surrogate(self, group: Group, rollout: Rollout, policy: Tensor) -> Tensor:
        """The sum over a rollout's sampled tokens of -min(ratio A, clip(ratio) A), times the importance weight."""
        grpo = self.settings.grpo
        (advantage,) = [score.advantage for score in self.scores if score.rollout_id == rollout.id]
        now = at_sampled(policy, rollout)
        before = at_sampled(self.fixed(self.teacher, group.prompt_token_ids, rollout), rollout)
        # A token whose log-probability the sampler did not give counts as sampled by the weights that read it.
        unknown = before if grpo.old_logprobs == "trainer" else now.detach()
        given = zip(rollout.sampled_logprobs, unknown, strict=True)
        sampler = torch.stack([own if value is None else torch.tensor(value).double() for value, own in given])
        if grpo.old_logprobs == "trainer":
            ratio = torch.exp(now - before)
            weight = torch.minimum(torch.exp(before - sampler), torch.tensor(grpo.importance_cap))
        else:
            ratio = torch.exp(now - sampler)
            weight = torch.minimum(torch.tensor(1.0), grpo.importance_cap / ratio.detach())
        clipped = torch.clamp(ratio, 1 - grpo.clip_low, 1 + grpo.clip_high)
        return -(torch.min(ratio * advantage, clipped * advantage) * weight).sum()

    def _kl(self, group: Group, rollout: Rollout, policy: Tensor) -> Tensor:
        """The sum over a rollout's sampled tokens of r - log r - 1, r = reference / policy."""
        base = self.fixed(self.reference, group.prompt_token_ids, rollout)
        gap = at_sampled(base, rollout) - at_sampled(policy, rollout)
        return (torch.exp(gap) - gap - 1).sum()

    def _divergences(self, group: Group, rollout: Rollout, policy: Tensor) -> list[Tensor]:
        distillation = self.settings.distillation
        wanted = self._query_tokens(rollout) if distillation.positions == "query" else rollout.completion_positions
        terms = []
        for block, position in self._lessons(group, rollout, wanted):
            offset = group.block_offset
            context = [*group.prompt_token_ids[:offset], *block.token_ids, *group.prompt_token_ids[offset:]]
            p = self.fixed(self.teacher, context, rollout)[position].exp()
            plain = self.fixed(self.teacher, group.prompt_token_ids, rollout)[position].exp()
            if block.contrast_token_ids:
                other = [*group.prompt_token_ids[:offset], *block.contrast_token_ids, *group.prompt_token_ids[offset:]]
                moved = plain * p / self.fixed(self.teacher, other, rollout)[position].exp()
                p = moved / moved.sum()
            chosen = {"teacher": p, "student": plain, "full": None}[distillation.support]
            ids = None if chosen is None else most_likely(chosen, distillation.top_k)
            terms.append(
                divergence_from_formula(p, policy[position].exp(), ids, distillation.divergence, distillation.tail)
            )
        return terms

    def _query_tokens(self, rollout: Rollout) -> list[int]:
        """Places of the tokens inside queries: of those that got documents, or of all that were written."""
        places, start = [], 0
        for turn in rollout.turns:
            documents = turn.observation is not None and turn.observation.kind == "documents"
            if documents or self.settings.hindsight.unsent_queries == "keep":
                places += [start + offset for offset in turn.generation.query_positions]
            start += len(turn.generation.token_ids) + (len(turn.observation.token_ids) if turn.observation else 0)
        return places

    def _lessons(self, group: Group, rollout: Rollout, positions: Sequence[int]) -> list[tuple[HindsightBlock, int]]:
        """Each wanted position with the block that teaches it, where there is one."""
        turns: list[int] = []
        for number, turn in enumerate(rollout.turns):
            reply = turn.observation.token_ids if turn.observation else ()
            turns += [number] * (len(turn.generation.token_ids) + len(reply))
        lessons = []
        for position in positions:
            for block in self.blocks:
                shows = block.attempts if block.focal_turn is None else block.token_ids
                if block.group_id != group.id or not shows:
                    continue
                if block.homogeneous and self.settings.hindsight.homogeneous == "skip":
                    continue
                if block.focal_rollout in (None, rollout.index) and block.focal_turn in (None, turns[position]):
                    lessons.append((block, position))
        return lessons
