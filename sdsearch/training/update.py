"""The update stage: an iteration's rollouts cut into optimiser steps, each refused unless it is finite."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from schemas.records.update import StepReport
from schemas.settings.root import GrpoSettings, Settings, UpdateSettings
from sdsearch.model.dropout import update_mode, without_randomness
from sdsearch.model.policy import set_gradient_checkpointing, trainable_parameters
from sdsearch.seeds import derive_seed
from sdsearch.training.gradient import rounding_noise, zero_gradient
from sdsearch.training.logprobs import score_once
from sdsearch.training.loss import (
    ScoredRollout,
    StepMember,
    StepTerms,
    TrainingRollout,
    accumulate_gradient,
    total_loss,
    weigh,
)
from sdsearch.training.loss_settings import LossSettings
from sdsearch.training.optimiser import learning_rate_at, scale_gradient
from sdsearch.training.refusal import NonFiniteUpdateError, describe_refused


@dataclass(frozen=True)
class _Step:
    """An optimiser step's number in the run (from 1), its weight of L_SD and its learning rate."""

    number: int
    alpha: float
    learning_rate: float


@dataclass(frozen=True)
class _GradientNorms:
    """L2 norms of a step's gradient before clipping; those of its two parts where they were measured."""

    total: float
    grpo: float | None
    sd: float | None


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

    It takes all settings, because the record of a refused step keeps them; each helper gets only what it reads.
    Raises NonFiniteUpdateError before the weights change when a step's loss or gradient is not finite.
    """
    update, loss_settings, alpha = settings.update, LossSettings.of(settings), settings.alpha_at(iteration)
    num_steps = settings.iterations * settings.num_steps_per_iteration
    set_gradient_checkpointing(model, update.gradient_checkpointing)
    one_step = update.epochs == 1 and len(rollouts) <= update.rollouts_per_step
    with without_randomness(model):
        scored = score_once(model, frozen_reference, rollouts, loss_settings, one_step=one_step)
    batches = optimiser_steps(scored, update, settings.grpo, settings.seed, iteration)
    measure_parts = bool(update.gradient_parts_every) and (iteration - 1) % update.gradient_parts_every == 0
    for number, members in enumerate(batches, steps_done + 1):
        step = _Step(number, alpha, learning_rate_at(number, num_steps, update))
        with update_mode(model, update.dropout):
            totals, norms = _compute_gradient(model, members, loss_settings, alpha, measure_parts, update.max_grad_norm)
            report = _report(step, members, totals, norms, settings.grpo.kl_coefficient, settings.model.dtype)
            if not (math.isfinite(report.loss) and math.isfinite(report.grad_norm)):
                refused = describe_refused(model, members, settings, iteration, report)
                model.zero_grad(set_to_none=True)
                raise NonFiniteUpdateError(refused)
            for group in optimiser.param_groups:
                group["lr"] = step.learning_rate
            optimiser.step()
        yield report
    model.zero_grad(set_to_none=True)  # Sampling needs the memory.


def optimiser_steps(
    scored: Sequence[ScoredRollout], update: UpdateSettings, grpo: GrpoSettings, seed: int, iteration: int
) -> Iterator[list[StepMember]]:
    """Cut the rollouts into optimiser steps, in an order of groups that depends on the seed alone.

    Siblings stay together, so that a step forwards their prompt once; a group at a border is divided between steps.
    """
    groups = [list(siblings) for _, siblings in groupby(scored, key=lambda item: item.rollout.sequence.context_ids)]
    for epoch in range(update.epochs):
        shuffled = list(groups)
        random.Random(derive_seed(seed, "order", iteration, epoch)).shuffle(shuffled)
        order = [item for group in shuffled for item in group]
        for start in range(0, len(order), update.rollouts_per_step):
            yield weigh(order[start : start + update.rollouts_per_step], grpo)


def _compute_gradient(
    model: nn.Module,
    members: Sequence[StepMember],
    settings: LossSettings,
    alpha: float,
    measure_parts: bool,
    max_norm: float,
) -> tuple[StepTerms, _GradientNorms]:
    """Leave the step's gradient, clipped to `max_norm`, on the parameters; return its sums and norms."""
    model.zero_grad(set_to_none=True)
    sd_gradient = zero_gradient(model) if measure_parts else None
    totals = accumulate_gradient(model, members, settings, alpha, sd_gradient)
    grpo_norm, sd_norm = _merge_parts(model, sd_gradient) if sd_gradient is not None else (None, None)
    return totals, _GradientNorms(scale_gradient(model, max_norm), grpo_norm, sd_norm)


def _merge_parts(model: nn.Module, sd_gradient: Sequence[Tensor]) -> tuple[float, float]:
    """Return the norms of the GRPO and the SD part, and make the parameters' gradient their sum."""
    parameters = list(trainable_parameters(model).values())
    grpo = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    for parameter, gradient in zip(parameters, sd_gradient, strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return float(grpo), float(torch.nn.utils.get_total_norm(list(sd_gradient)))


def _report(
    step: _Step,
    members: Sequence[StepMember],
    totals: StepTerms,
    norms: _GradientNorms,
    kl_coefficient: float,
    dtype: str,
) -> StepReport:
    num_read = int(totals.num_read)

    def mean(total: Tensor) -> float | None:
        return float(total) / num_read if num_read else None

    return StepReport(
        step=step.number,
        num_rollouts=len(members),
        num_completion_tokens=sum(len(member.scored.rollout.sequence.reads) for member in members),
        num_read_tokens=num_read,
        num_distilled_tokens=sum(len(member.scored.rollout.distilled) for member in members) if step.alpha else 0,
        loss=total_loss(totals, kl_coefficient, step.alpha),
        policy_loss=float(totals.policy_loss),
        sd_loss=float(totals.sd_loss),
        kl=float(totals.kl),
        alpha=step.alpha,
        entropy=mean(totals.entropy_sum),
        grad_norm=norms.total,
        grad_norm_grpo=norms.grpo,
        grad_norm_sd=norms.sd,
        grad_noise=rounding_noise(norms.grpo, dtype),
        clip_share=mean(totals.num_clipped),
        ratio_max=float(totals.ratio_max) if num_read else None,
        truncated_share=mean(totals.num_truncated),
        sampler_kl=mean(totals.sampler_kl_sum),
        sampler_max_difference=float(totals.sampler_max_difference) if num_read else None,
        num_missing_logprobs=int(totals.num_missing_logprobs),
        learning_rate=step.learning_rate,
    )
