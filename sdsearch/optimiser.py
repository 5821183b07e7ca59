"""AdamW and its learning rate as functions of the step, and both as plain tensors that a file can hold."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from schemas.config import UpdateSettings
from sdsearch.policy import trainable_parameters

Schedule = Literal["constant", "linear", "cosine"]
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def make_optimiser(model: nn.Module, settings: UpdateSettings) -> AdamW:
    """Return AdamW over the trainable parameters."""
    return AdamW(
        list(trainable_parameters(model).values()),
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        foreach=True,
    )


def learning_rate_at(step: int, num_steps: int, settings: UpdateSettings) -> float:
    """Return the learning rate of optimiser step `step` (from 1) of `num_steps`."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    progress = (step - settings.warmup_steps - 1) / max(1, num_steps - settings.warmup_steps)
    decay = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return settings.learning_rate * max(0.0, decay[settings.schedule])


def optimiser_state(model: nn.Module, optimiser: AdamW) -> dict[str, Tensor]:
    """Return AdamW's moments and step counts as `<moment>.<parameter name>`; empty before the first step."""
    return {
        f"{moment}.{name}": optimiser.state[parameter][moment]
        for name, parameter in trainable_parameters(model).items()
        if parameter in optimiser.state
        for moment in _MOMENTS
    }


def load_optimiser_state(model: nn.Module, optimiser: AdamW, state: dict[str, Tensor]) -> None:
    """Put back what `optimiser_state` returned; ValueError when it belongs to other parameters."""
    parameters = trainable_parameters(model)
    expected = {f"{moment}.{name}" for name in parameters for moment in _MOMENTS}
    if state and set(state) != expected:
        odd = sorted(set(state) ^ expected)[:3]
        raise ValueError(f"the optimiser state does not fit the policy's trainable parameters: {odd} …")
    for name, parameter in parameters.items():
        if state:
            optimiser.state[parameter] = {moment: state[f"{moment}.{name}"].clone() for moment in _MOMENTS}


def scale_gradient(model: nn.Module, max_norm: float) -> float:
    """Scale the gradient down to `max_norm` and return its norm before that."""
    return float(torch.nn.utils.clip_grad_norm_(list(trainable_parameters(model).values()), max_norm))
