"""The update stage: an iteration's rollouts cut into optimiser steps, each refused unless it is finite."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from schemas.config import Settings
from schemas.errors import UserError
from schemas.update import StepReport
from sdsearch.batching import TokenBatch, TokenSequence, microbatches
from sdsearch.loss import ScoredRollout, StepMember, StepTerms, TrainingRollout, accumulate_gradient, weigh
from sdsearch.objective.heads import read_logprobs
from sdsearch.optimiser import learning_rate_at, scale_gradient
from sdsearch.policy import head, reference_weights, trainable_parameters
from sdsearch.seeds import derive_seed


class NonFiniteUpdateError(UserError):
    """A loss or gradient is NaN or infinite; the step was refused and the weights are as before it."""


def update_policy(
    model: nn.Module,
    frozen_reference: nn.Module | None,
    optimiser: AdamW,
    rollouts: Sequence[TrainingRollout],
    settings: Settings,
    *,
    iteration: int,
    steps_done: int,
) -> Iterator[StepReport]:
    """Take an iteration's optimiser steps, yielding a report after each.

    Raises NonFiniteUpdateError before the weights change when a step's loss or gradient is not finite.
    """
    model.train()
    scored = score_once(model, frozen_reference, rollouts, settings)
    alpha = settings.alpha_at(iteration)
    every = settings.update.gradient_parts_every
    measure_parts = bool(every) and (iteration - 1) % every == 0
    for offset, members in enumerate(_steps(scored, settings, iteration), 1):
        step = steps_done + offset
        report = _take_step(model, optimiser, members, settings, alpha, step, measure_parts)
        yield report


def num_steps_per_iteration(settings: Settings) -> int:
    """Return the optimiser steps of one iteration."""
    rollouts = settings.data.questions_per_iteration * settings.rollout.group_size
    return settings.update.epochs * -(-rollouts // settings.update.rollouts_per_step)


def _steps(scored: Sequence[ScoredRollout], settings: Settings, iteration: int) -> Iterator[list[StepMember]]:
    """Cut the rollouts into optimiser steps, in an order that depends on the seed alone."""
    for epoch in range(settings.update.epochs):
        order = list(scored)
        random.Random(derive_seed(settings.seed, "order", iteration, epoch)).shuffle(order)
        for start in range(0, len(order), settings.update.rollouts_per_step):
            yield weigh(order[start : start + settings.update.rollouts_per_step], settings.grpo)


def score_once(
    model: nn.Module, frozen: nn.Module | None, rollouts: Sequence[TrainingRollout], settings: Settings
) -> list[ScoredRollout]:
    trainer: Sequence[Tensor | None] = [None] * len(rollouts)
    reference: Sequence[Tensor | None] = [None] * len(rollouts)
    sequences = [rollout.sequence for rollout in rollouts]
    if settings.grpo.old_logprobs == "trainer":
        trainer = sequence_logprobs(model, sequences, settings)
    if settings.grpo.kl_coefficient:
        with reference_weights(model, frozen) as reference_model:
            reference = sequence_logprobs(reference_model, sequences, settings)
    return [
        ScoredRollout(rollout, sampled_tensor(rollout.sampled_logprobs), own, base)
        for rollout, own, base in zip(rollouts, trainer, reference, strict=True)
    ]


def sampled_tensor(logprobs: Sequence[float | None]) -> Tensor:
    """Return the sampler's log-probabilities (N,), NaN where it gave none."""
    return torch.tensor([math.nan if logprob is None else logprob for logprob in logprobs])


@torch.no_grad()
def sequence_logprobs(model: nn.Module, sequences: Sequence[TokenSequence], settings: Settings) -> list[Tensor]:
    """Return the log-probabilities (N,) of each sequence's read tokens at the rollout temperature, on the CPU."""
    results: list[Tensor] = [torch.empty(0)] * len(sequences)
    device = next(model.parameters()).device
    for members in microbatches(sequences, settings.update.max_tokens_per_microbatch):
        batch = TokenBatch.of([sequences[i] for i in members], device)
        hidden_ND = batch.hidden_at_reads(model)
        pieces = []
        for start in range(0, len(hidden_ND), settings.update.head_chunk):
            part = slice(start, start + settings.update.head_chunk)
            logprobs_NV = read_logprobs(head(model), hidden_ND[part], settings.rollout.temperature)
            pieces.append(logprobs_NV.gather(1, batch.targets_N[part, None])[:, 0])
        for index, piece in zip(
            members, torch.cat(pieces).split([len(sequences[i].reads) for i in members]), strict=True
        ):
            results[index] = piece.cpu()
    return results


def _take_step(
    model: nn.Module,
    optimiser: AdamW,
    members: Sequence[StepMember],
    settings: Settings,
    alpha: float,
    step: int,
    measure_parts: bool,
) -> StepReport:
    optimiser.zero_grad(set_to_none=True)
    sd_gradient = [torch.zeros_like(p) for p in trainable_parameters(model).values()] if measure_parts else None
    totals = accumulate_gradient(model, members, settings, alpha, sd_gradient)
    norm_sd = _merge_parts(model, sd_gradient) if sd_gradient is not None else None
    grpo_norm, sd_norm = norm_sd if norm_sd else (None, None)
    grad_norm = scale_gradient(model, settings.update.max_grad_norm)
    report = _report(members, totals, settings, alpha, step, (grad_norm, grpo_norm, sd_norm))
    if not (math.isfinite(report.loss) and math.isfinite(grad_norm)):
        optimiser.zero_grad(set_to_none=True)
        ids = ", ".join(member.scored.rollout.rollout_id for member in members[:3])
        raise NonFiniteUpdateError(
            f"optimiser step {step}: loss {report.loss}, gradient norm {grad_norm}; both must be finite. The step was "
            f"refused and the last checkpoint is intact. Rollouts of the step: {ids}, … ({len(members)} in all); "
            "lower update.learning_rate, or look at their log-probabilities"
        )
    for group in optimiser.param_groups:
        group["lr"] = report.learning_rate
    optimiser.step()
    return report


def _merge_parts(model: nn.Module, sd_gradient: Sequence[Tensor]) -> tuple[float, float]:
    """Return the norms of the GRPO and the SD part, and make the parameters' gradient their sum."""
    parameters = list(trainable_parameters(model).values())
    grpo = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    for parameter, gradient in zip(parameters, sd_gradient, strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return float(grpo), float(torch.nn.utils.get_total_norm(list(sd_gradient)))


def _report(
    members: Sequence[StepMember],
    totals: StepTerms,
    settings: Settings,
    alpha: float,
    step: int,
    norms: tuple[float, float | None, float | None],
) -> StepReport:
    num_tokens = sum(len(member.scored.rollout.sequence.reads) for member in members)
    policy_loss, kl, sd_loss = float(totals.policy_loss), float(totals.kl), float(totals.sd_loss)
    num_steps = settings.iterations * num_steps_per_iteration(settings)
    return StepReport(
        step=step,
        num_rollouts=len(members),
        num_completion_tokens=num_tokens,
        num_distilled_tokens=sum(len(member.scored.rollout.distilled) for member in members) if alpha else 0,
        loss=policy_loss + settings.grpo.kl_coefficient * kl + alpha * sd_loss,
        policy_loss=policy_loss,
        sd_loss=sd_loss,
        kl=kl,
        alpha=alpha,
        entropy=float(totals.entropy_sum) / num_tokens,
        grad_norm=norms[0],
        grad_norm_grpo=norms[1],
        grad_norm_sd=norms[2],
        clip_share=float(totals.num_clipped) / num_tokens,
        ratio_max=float(totals.ratio_max),
        sampler_kl=float(totals.sampler_kl_sum) / num_tokens,
        sampler_max_difference=float(totals.sampler_max_difference),
        num_missing_logprobs=int(totals.num_missing_logprobs),
        learning_rate=learning_rate_at(step, num_steps, settings.update),
    )
