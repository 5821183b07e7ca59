"""AdamW and its learning rate as functions of the step, and its state as plain tensors that a file can hold.

AdamW works on fp32 weights. Where the policy's are of a smaller type it keeps an fp32 master of each and writes the
rounded value back after every step: a step of 1e-6 is lost in the rounding of bfloat16, the sum of many is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from schemas.settings.root import UpdateSettings
from sdsearch.model.policy import trainable_parameters
from sdsearch.model.ranks import whole

Schedule = Literal["constant", "linear", "cosine"]
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
MASTER: Final = "master"
"""What the name of a weight's fp32 master begins with in a stored state."""


def make_optimiser(model: nn.Module, settings: UpdateSettings) -> AdamW:
    """Return AdamW over the trainable parameters, or over fp32 masters of those that are not fp32."""
    parameters = list(trainable_parameters(model).values())
    masters = [p if p.dtype == torch.float32 else p.detach().float().requires_grad_() for p in parameters]
    optimiser = AdamW(
        masters,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    pairs = [(p, master) for p, master in zip(parameters, masters, strict=True) if master is not p]
    optimiser.register_step_pre_hook(lambda *_: _hand_over_gradients(pairs))
    optimiser.register_step_post_hook(lambda *_: _write_back(pairs))
    return optimiser


def _hand_over_gradients(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Let the masters have the parameters' gradients, which are fp32 already: nothing is copied."""
    for parameter, master in pairs:
        master.grad = None if parameter.grad is None else parameter.grad.float()


@torch.no_grad()
def _write_back(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for parameter, master in pairs:
        parameter.copy_(master)
        master.grad = None


def _masters(model: nn.Module, optimiser: AdamW) -> dict[str, Tensor]:
    """Return the weights that AdamW works on by their parameter's name, where they are not the parameter itself."""
    weights = optimiser.param_groups[0]["params"]
    named = zip(trainable_parameters(model).items(), weights, strict=True)
    return {name: weight for (name, parameter), weight in named if weight is not parameter}


def learning_rate_at(step: int, num_steps: int, settings: UpdateSettings) -> float:
    """Return the learning rate of optimiser step `step` (from 1) of `num_steps`."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    progress = (step - settings.warmup_steps - 1) / max(1, num_steps - settings.warmup_steps)
    decay = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return settings.learning_rate * max(0.0, decay[settings.schedule])


def optimiser_state(model: nn.Module, optimiser: AdamW) -> dict[str, Tensor]:
    """Return AdamW's moments and step counts as `<moment>.<parameter name>`, and its masters as `master.<name>`.

    Moments are missing before the first step, masters where the parameters are fp32 themselves.
    """
    masters = _masters(model, optimiser)
    moments = {
        f"{moment}.{name}": optimiser.state[weight][moment]
        for name, weight in {**trainable_parameters(model), **masters}.items()
        if weight in optimiser.state
        for moment in _MOMENTS
    }
    return {**moments, **{f"{MASTER}.{name}": master.detach() for name, master in masters.items()}}


def load_optimiser_state(model: nn.Module, optimiser: AdamW, state: dict[str, Tensor]) -> None:
    """Put back what `optimiser_state` returned; ValueError when it belongs to other parameters."""
    masters = _masters(model, optimiser)
    weights = {**trainable_parameters(model), **masters}
    expected = {f"{moment}.{name}" for name in weights for moment in _MOMENTS}
    expected |= {f"{MASTER}.{name}" for name in masters}
    if state and set(state) != expected:
        odd = sorted(set(state) ^ expected)[:3]
        raise ValueError(f"the optimiser state does not fit the policy's trainable parameters: {odd} …")
    for name, weight in weights.items():
        if state:
            optimiser.state[weight] = {moment: state[f"{moment}.{name}"].clone() for moment in _MOMENTS}
        if state and name in masters:
            weight.data.copy_(state[f"{MASTER}.{name}"])


def scale_gradient(model: nn.Module, max_norm: float) -> float:
    """Return the gradient's norm, and scale the gradient down to `max_norm` where that is not 0.

    A gradient that is not finite stays as it is.
    """
    parameters = [p for p in trainable_parameters(model).values() if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if max_norm and torch.isfinite(norm):
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)
