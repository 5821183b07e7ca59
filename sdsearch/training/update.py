"""The update stage: an iteration's rollouts cut into optimiser steps, each refused unless it is finite."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from schemas.records.update import StepReport
from schemas.settings.root import Settings
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
from sdsearch.training.optimiser import learning_rate_at, scale_gradient
from sdsearch.training.refusal import NonFiniteUpdateError, describe_refused


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
    set_gradient_checkpointing(model, settings.update.gradient_checkpointing)
    one_step = settings.update.epochs == 1 and len(rollouts) <= settings.update.rollouts_per_step
    with without_randomness(model):
        scored = score_once(model, frozen_reference, rollouts, settings, one_step=one_step)
    for offset, members in enumerate(optimiser_steps(scored, settings, iteration), 1):
        with update_mode(model, settings.update.dropout):
            report = _take_step(model, optimiser, members, settings, iteration, steps_done + offset)
        yield report
    model.zero_grad(set_to_none=True)  # Sampling needs the memory.


def optimiser_steps(scored: Sequence[ScoredRollout], settings: Settings, iteration: int) -> Iterator[list[StepMember]]:
    """Cut the rollouts into optimiser steps, in an order of groups that depends on the seed alone.

    Siblings stay together, so that a step forwards their prompt once; a group at a border is divided between steps.
    """
    groups = [list(siblings) for _, siblings in groupby(scored, key=lambda item: item.rollout.sequence.context_ids)]
    for epoch in range(settings.update.epochs):
        shuffled = list(groups)
        random.Random(derive_seed(settings.seed, "order", iteration, epoch)).shuffle(shuffled)
        order = [item for group in shuffled for item in group]
        for start in range(0, len(order), settings.update.rollouts_per_step):
            yield weigh(order[start : start + settings.update.rollouts_per_step], settings.grpo)


def _take_step(
    model: nn.Module,
    optimiser: AdamW,
    members: Sequence[StepMember],
    settings: Settings,
    iteration: int,
    step: int,
) -> StepReport:
    """Take one step in place; NonFiniteUpdateError leaves the weights as they were."""
    alpha = settings.alpha_at(iteration)
    every = settings.update.gradient_parts_every
    measure_parts = bool(every) and (iteration - 1) % every == 0
    model.zero_grad(set_to_none=True)
    sd_gradient = zero_gradient(model) if measure_parts else None
    totals = accumulate_gradient(model, members, settings, alpha, sd_gradient)
    norm_sd = _merge_parts(model, sd_gradient) if sd_gradient is not None else None
    grpo_norm, sd_norm = norm_sd if norm_sd else (None, None)
    grad_norm = scale_gradient(model, settings.update.max_grad_norm)
    report = _report(members, totals, settings, alpha, step, (grad_norm, grpo_norm, sd_norm))
    if not (math.isfinite(report.loss) and math.isfinite(grad_norm)):
        refused = describe_refused(model, members, settings, iteration, report)
        model.zero_grad(set_to_none=True)
        raise NonFiniteUpdateError(refused)
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
    num_steps = settings.iterations * settings.num_steps_per_iteration
    num_read = int(totals.num_read)

    def mean(total: Tensor) -> float | None:
        return float(total) / num_read if num_read else None

    return StepReport(
        step=step,
        num_rollouts=len(members),
        num_completion_tokens=sum(len(member.scored.rollout.sequence.reads) for member in members),
        num_read_tokens=num_read,
        num_distilled_tokens=sum(len(member.scored.rollout.distilled) for member in members) if alpha else 0,
        loss=total_loss(totals, settings.grpo.kl_coefficient, alpha),
        policy_loss=float(totals.policy_loss),
        sd_loss=float(totals.sd_loss),
        kl=float(totals.kl),
        alpha=alpha,
        entropy=mean(totals.entropy_sum),
        grad_norm=norms[0],
        grad_norm_grpo=norms[1],
        grad_norm_sd=norms[2],
        grad_noise=rounding_noise(norms[1], settings.model.dtype),
        clip_share=mean(totals.num_clipped),
        ratio_max=float(totals.ratio_max) if num_read else None,
        truncated_share=mean(totals.num_truncated),
        sampler_kl=mean(totals.sampler_kl_sum),
        sampler_max_difference=float(totals.sampler_max_difference) if num_read else None,
        num_missing_logprobs=int(totals.num_missing_logprobs),
        learning_rate=learning_rate_at(step, num_steps, settings.update),
    )
