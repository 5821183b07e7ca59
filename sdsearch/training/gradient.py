"""The gradient of an optimiser step: a sum over its micro-batches, in fp32 even where the weights are bfloat16.

A sum in bfloat16 keeps eight bits: what a part of a thousandth adds is lost in the rounding of the whole. So autograd
casts each micro-batch's gradient of a parameter to fp32 before it adds it to `grad`; the optimiser's fp32 masters take
these tensors as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sdsearch.model.policy import trainable_parameters


def sum_precisely(model: nn.Module) -> list[Tensor]:
    """Let the trainable parameters' gradients be summed in fp32 at least, and return these parameters.

    A parameter that has a gradient of a smaller type already is refused by torch (RuntimeError).
    """
    parameters = list(trainable_parameters(model).values())
    for parameter in parameters:
        parameter.grad_dtype = _sum_dtype(parameter)
    return parameters


def zero_gradient(model: nn.Module) -> list[Tensor]:
    """Return zeros in the shape and type of each trainable parameter's gradient."""
    return [torch.zeros_like(p, dtype=_sum_dtype(p)) for p in trainable_parameters(model).values()]


@contextmanager
def added_apart(parameters: Sequence[Tensor], part: Sequence[Tensor]) -> Iterator[None]:
    """Let backward passes add to the tensors of `part`; the parameters' own gradients stay as they are."""
    own = [parameter.grad for parameter in parameters]
    for parameter, gradient in zip(parameters, part, strict=True):
        parameter.grad = gradient  # Autograd adds to it in place.
    try:
        yield
    finally:
        for parameter, former in zip(parameters, own, strict=True):
            parameter.grad = former


def rounding_noise(grpo_norm: float | None, dtype: str) -> float | None:
    """Estimate the length of the error that a gradient has from bfloat16's forward and backward pass.

    Measured as .039 of the GRPO part's length on the mini policy (docs/explanation/precision.md), in one micro-batch or
    many; a deeper model may have more. None under other weights, or where that length is not known.
    """
    return grpo_norm / 26 if grpo_norm is not None and dtype == "bfloat16" else None


def _sum_dtype(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)
