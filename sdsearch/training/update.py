"""The update stage: an iteration's rollouts cut into optimiser steps, each refused unless it is finite."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from torch import Tensor, nn
from torch.optim import AdamW

from schemas.records.update import StepReport
from schemas.settings.root import GrpoSettings, Settings, UpdateSettings
from sdsearch.model.dropout import update_mode, without_randomness
from sdsearch.model.policy import set_gradient_checkpointing
from sdsearch.seeds import derive_seed
from sdsearch.training.gradient import rounding_noise
from sdsearch.training.logprobs import score_once
from sdsearch.training.loss import ScoredRollout, StepMember, TrainingRollout, step_waiting, total_loss, weigh
from sdsearch.training.loss_settings import LossSettings
from sdsearch.training.optimiser import learning_rate_at
from sdsearch.training.refusal import NonFiniteUpdateError, describe_refused
from sdsearch.training.step_gradient import StepGradient, compute_step_gradient
from sdsearch.training.strength import Strength, begin_iteration


@dataclass(frozen=True)
class _Step:
    """An optimiser step's number in the run (from 1) and its learning rate."""

    number: int
    learning_rate: float


def update_policy(
    model: nn.Module,
    frozen_reference: nn.Module | None,
    optimiser: AdamW,
    rollouts: Sequence[TrainingRollout],
    settings: Settings,
    *,
    iteration: int,
    steps_done: int,
    strength: Strength | None = None,
) -> Iterator[StepReport]:
    """Take an iteration's optimiser steps, yielding a report after each.

    strength: the distillation's, with what earlier iterations measured; None begins anew. It takes all settings,
    because the record of a refused step keeps them; each helper gets only what it reads.
    Raises NonFiniteUpdateError before the weights change when a step's loss or gradient is not finite.
    """
    update, loss_settings = settings.update, LossSettings.of(settings)
    strength = strength or begin_iteration(settings, iteration)
    num_steps = settings.iterations * settings.num_steps_per_iteration
    set_gradient_checkpointing(model, update.gradient_checkpointing)
    one_step = update.epochs == 1 and sum(map(_counts, rollouts)) <= update.rollouts_per_step
    with without_randomness(model):
        scored = score_once(model, frozen_reference, rollouts, loss_settings, one_step=one_step)
    batches = optimiser_steps(scored, update, settings.grpo, settings.seed, iteration)
    measure_parts = bool(update.gradient_parts_every) and (iteration - 1) % update.gradient_parts_every == 0
    for number, members in enumerate(batches, steps_done + 1):
        step = _Step(number, learning_rate_at(number, num_steps, update))
        with update_mode(model, update.dropout):
            gradient = compute_step_gradient(
                model, members, loss_settings, strength, update.max_grad_norm, measure_parts=measure_parts
            )
            strength = gradient.strength
            report = _report(step, members, gradient, loss_settings, settings.model.dtype)
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
    Retries follow the last of their siblings into its step and are not counted: they make no step more. Nor do the
    groups of replacements: with them the iteration's planned steps take equal shares of all siblings.
    """
    groups = [list(siblings) for _, siblings in groupby(scored, key=lambda item: item.rollout.sequence.context_ids)]
    for epoch in range(update.epochs):
        shuffled = list(groups)
        random.Random(derive_seed(seed, "order", iteration, epoch)).shuffle(shuffled)
        order = [item for group in shuffled for item in group]
        siblings = [place for place, item in enumerate(order) if item.rollout.retry is None]
        num_planned = sum(_counts(item.rollout) for item in order)
        starts = _starts(siblings, num_planned, update.rollouts_per_step)
        for start, end in pairwise([*starts, len(order)]):
            yield weigh(order[start:end], grpo)


def _counts(rollout: TrainingRollout) -> bool:
    """Whether a rollout is one of those that an iteration's number of steps is planned for."""
    return rollout.retry is None and not rollout.is_replacement


def _starts(siblings: Sequence[int], num_planned: int, rollouts_per_step: int) -> Sequence[int]:
    """Return where each step begins among the places of the siblings."""
    if len(siblings) == num_planned:
        return siblings[::rollouts_per_step]
    num_steps = -(-num_planned // rollouts_per_step)
    return [siblings[step * len(siblings) // num_steps] for step in range(num_steps)]


def _report(
    step: _Step, members: Sequence[StepMember], gradient: StepGradient, settings: LossSettings, dtype: str
) -> StepReport:
    totals, alpha, strength = gradient.totals, gradient.alpha, gradient.strength
    num_read = int(totals.num_read)

    def mean(total: Tensor) -> float | None:
        return float(total) / num_read if num_read else None

    return StepReport(
        step=step.number,
        num_rollouts=len(members),
        num_completion_tokens=sum(len(member.scored.rollout.sequence.reads) for member in members),
        num_read_tokens=num_read,
        num_distilled_tokens=sum(len(member.scored.rollout.distilled) for member in members) if alpha else 0,
        loss=total_loss(totals, settings.grpo.kl_coefficient, alpha),
        policy_loss=float(totals.policy_loss),
        sd_loss=float(totals.sd_loss),
        kl=float(totals.kl),
        alpha=alpha,
        schedule_weight=strength.weight,
        entropy=mean(totals.entropy_sum),
        grad_norm=gradient.norm,
        grad_norm_grpo=gradient.norm_grpo,
        grad_norm_sd=gradient.norm_sd,
        grad_noise=rounding_noise(gradient.norm_grpo, dtype),
        sd_clip_factor=gradient.sd_clip_factor,
        smoothed_norm_grpo=strength.state.norm_grpo,
        smoothed_norm_sd=strength.state.norm_sd,
        gap_kind=strength.state.gap_kind,
        smoothed_gap=strength.state.gap,
        largest_gap=strength.state.largest_gap,
        retired_to=strength.state.retired_to if strength.state.gap_kind else None,
        clip_share=mean(totals.num_clipped),
        ratio_max=float(totals.ratio_max) if num_read else None,
        truncated_share=mean(totals.num_truncated),
        sampler_kl=mean(totals.sampler_kl_sum),
        sampler_max_difference=float(totals.sampler_max_difference) if num_read else None,
        num_missing_logprobs=int(totals.num_missing_logprobs),
        learning_rate=step.learning_rate,
        waiting_share=step_waiting(members, settings, alpha),
    )
