"""The gradient of an optimiser step from its parts, GRPO's and the distillation's: measured, weighed, clipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from sdsearch.model.policy import trainable_parameters
from sdsearch.model.ranks import whole
from sdsearch.training.gradient import zero_gradient
from sdsearch.training.loss import StepMember, StepTerms, accumulate_gradient
from sdsearch.training.loss_settings import LossSettings
from sdsearch.training.optimiser import scale_gradient
from sdsearch.training.strength import Strength


@dataclass(frozen=True)
class StepGradient:
    """What was done to leave a step's gradient on the parameters."""

    totals: StepTerms
    strength: Strength  # with what this step measured
    alpha: float
    norm: float  # of the sum of both parts, before clipping
    norm_grpo: float | None  # of the parts, before clipping; None where they were not measured
    norm_sd: float | None  # with alpha
    sd_clip_factor: float | None  # what clip 'own' scaled the SD part by; None where it did not look


def compute_step_gradient(
    model: nn.Module,
    members: Sequence[StepMember],
    settings: LossSettings,
    strength: Strength,
    max_norm: float,
    *,
    measure_parts: bool,
) -> StepGradient:
    """Leave the step's gradient, clipped, on the parameters.

    Without a reason to tell the parts apart there is one backward pass. Strength 'gradient_share' measures L_SD's own
    gradient first and weighs it then, so that its share holds in this step already; a step in which no rollout has an
    advantage has no GRPO gradient to take a share of: it is not measured and alpha stays.
    """
    model.zero_grad(set_to_none=True)
    is_mixed = any(member.scored.rollout.has_advantage for member in members)
    measures = strength.measures and is_mixed and strength.weight > 0
    clips_own = settings.distillation.clip == "own" and strength.weight > 0
    if not (measure_parts or measures or clips_own):
        alpha = strength.alpha
        totals = accumulate_gradient(model, members, settings, alpha)
        return StepGradient(totals, strength, alpha, scale_gradient(model, max_norm), None, None, None)
    sd_gradient = zero_gradient(model)
    totals = accumulate_gradient(model, members, settings, 1.0 if measures else strength.alpha, sd_gradient)
    grpo_gradient = [p.grad for p in trainable_parameters(model).values() if p.grad is not None]
    norm_grpo, norm_sd = _norm(grpo_gradient), _norm(sd_gradient)
    if measures:
        strength = strength.with_norms(norm_grpo, norm_sd)
        torch._foreach_mul_(sd_gradient, strength.alpha)
        norm_sd *= strength.alpha
    norm, factor = None, None
    if clips_own:
        norm = _norm_of_sum(model, sd_gradient)
        bound = strength.share * (min(norm_grpo, max_norm) if is_mixed else max_norm)
        factor = _clip_apart(grpo_gradient, sd_gradient, (norm_grpo, norm_sd), (max_norm, bound))
    _add(model, sd_gradient)
    if norm is None:
        norm = scale_gradient(model, max_norm)
    return StepGradient(totals, strength, strength.alpha, norm, norm_grpo, norm_sd, factor)


def _clip_apart(
    grpo_gradient: Sequence[Tensor],
    sd_gradient: Sequence[Tensor],
    norms: tuple[float, float],
    bounds: tuple[float, float],
) -> float:
    """Scale each part down to its own bound, and return the SD part's factor; what is not finite stays as it is."""
    if not all(map(isfinite, norms)):
        return 1.0
    factors = [bound / norm if norm > bound else 1.0 for norm, bound in zip(norms, bounds, strict=True)]
    for part, factor in zip((grpo_gradient, sd_gradient), factors, strict=True):
        if factor < 1.0:
            torch._foreach_mul_(list(part), factor)
    return factors[1]


def _add(model: nn.Module, sd_gradient: Sequence[Tensor]) -> None:
    """Make the parameters' gradient the sum of both parts."""
    for parameter, gradient in zip(trainable_parameters(model).values(), sd_gradient, strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def _norm_of_sum(model: nn.Module, sd_gradient: Sequence[Tensor]) -> float:
    """Return the norm of the sum of both parts, of which one tensor exists at a time."""
    pairs = zip(trainable_parameters(model).values(), sd_gradient, strict=True)
    norms = [whole((part if p.grad is None else p.grad + part).norm()) for p, part in pairs]
    return float(torch.stack(norms).norm())


def _norm(gradient: Sequence[Tensor]) -> float:
    return float(whole(torch.nn.utils.get_total_norm(list(gradient))))
