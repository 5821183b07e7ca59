"""A moving average of a policy's weights, and a model that has it for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sdsearch.model.policy import trainable_parameters


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of what the update changes (with LoRA the adapters alone), by name: fp32, in the CPU's memory."""
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in trainable_parameters(model).items()
    }


def average_step(average: Mapping[str, Tensor], model: nn.Module, decay: float) -> dict[str, Tensor]:
    """Return decay * average + (1 - decay) * the model's weights, in fp32: one step of an exponential average."""
    return {name: decay * average[name] + (1 - decay) * weights for name, weights in trained_tensors(model).items()}


def as_weights_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors where the model has its parameters, and in their types."""
    return {
        name: tensors[name].to(parameter.device, parameter.dtype)
        for name, parameter in trainable_parameters(model).items()
    }


@contextmanager
def swapped_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Give the model the tensors of `as_weights_of` for its own, and its own back at the end."""
    parameters = trainable_parameters(model)
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = tensors[name]
        yield model
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]
