"""A second, deliberately naive objective, written from the formulas: one rollout at a time, full logits, float64.

It shares no code with sdsearch.loss, sdsearch.batching or sdsearch.objective.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from schemas.config import Settings
from schemas.hindsight import HindsightBlock
from schemas.rollout import Group, Rollout
from schemas.score import Score


def logprobs_of(model, prompt: list[int], rollout: Rollout, temperature: float) -> Tensor:
    """Log-probabilities (T, V) that predict each of the rollout's tokens."""
    ids = torch.tensor([[*prompt, *rollout.token_ids]])
    logits = model(input_ids=ids).logits[0].double() / temperature
    return log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]


def divergence_of(teacher: Tensor, student: Tensor, settings: Settings) -> Tensor:
    """One position's divergence from two full distributions (V,)."""
    distillation = settings.distillation
    p, q = teacher.exp(), student.exp()
    if distillation.support != "full":
        chosen = p if distillation.support == "teacher" else q
        ids = sorted(range(len(p)), key=lambda i: -float(chosen[i]))[: distillation.top_k]
        inside = torch.zeros(len(p), dtype=torch.bool)
        inside[ids] = True
        if distillation.tail == "bucket":
            p = torch.cat([p[inside], p[~inside].sum()[None]])
            q = torch.cat([q[inside], q[~inside].sum()[None]])
        else:
            p, q = p[inside] / p[inside].sum(), q[inside] / q[inside].sum()
    kl = lambda a, b: (a * (a / b).log()).sum()  # noqa: E731
    middle = (p + q) / 2
    return {
        "jsd": lambda: kl(p, middle) / 2 + kl(q, middle) / 2,
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "mse": lambda: ((p - q) ** 2).sum(),
    }[distillation.divergence]()


def naive_loss(
    model,
    reference,
    teacher,
    groups: list[Group],
    scores: list[Score],
    blocks: dict[str, HindsightBlock],
    settings: Settings,
    alpha: float,
) -> Tensor:
    """L_GRPO + alpha * L_SD over one optimiser step that holds all rollouts."""
    score_of = {score.rollout_id: score for score in scores}
    rollouts = [(group, rollout) for group in groups for rollout in group.rollouts]
    num_tokens = sum(len(rollout.completion_positions) for _, rollout in rollouts)
    grpo, total, sd_terms = settings.grpo, torch.zeros((), dtype=torch.float64), []
    for group, rollout in rollouts:
        prompt, temperature = list(group.prompt_token_ids), settings.rollout.temperature
        policy = logprobs_of(model, prompt, rollout, temperature)
        with torch.no_grad():
            base = logprobs_of(reference, prompt, rollout, temperature)
            offset = group.block_offset
            hinted = [*prompt[:offset], *blocks[group.id].token_ids, *prompt[offset:]]
            teacher_logprobs = logprobs_of(teacher, hinted, rollout, temperature)
            before = logprobs_of(teacher, prompt, rollout, temperature)
        sampled = iter(rollout.sampled_logprobs)
        rollout_sum = torch.zeros((), dtype=torch.float64)
        for position in rollout.completion_positions:
            token = rollout.token_ids[position]
            logprob, sampler = policy[position, token], next(sampled)
            advantage = score_of[rollout.id].advantage
            if grpo.old_logprobs == "trainer":
                ratio = (logprob - before[position, token]).exp()
                weight = min(float((before[position, token] - sampler).exp()), grpo.importance_cap)
            else:
                ratio = (logprob - sampler).exp()
                weight = min(1.0, grpo.importance_cap / float(ratio.detach()))
            clipped = ratio.clamp(1 - grpo.clip_low, 1 + grpo.clip_high)
            term = -torch.min(ratio * advantage, clipped * advantage) * weight
            gap = base[position, token] - logprob
            rollout_sum = rollout_sum + term + grpo.kl_coefficient * (gap.exp() - gap - 1)
        count = {
            "token_mean": num_tokens,
            "sequence_mean": len(rollouts) * len(rollout.completion_positions),
            "constant": len(rollouts) * grpo.constant_tokens,
        }[grpo.aggregation]
        total = total + rollout_sum / count
        positions = (
            rollout.query_positions if settings.distillation.positions == "query" else rollout.completion_positions
        )
        if positions:
            terms = [divergence_of(teacher_logprobs[p], policy[p], settings) for p in positions]
            sd_terms.append(torch.stack(terms).mean())
    return total + alpha * torch.stack(sd_terms).mean()
