"""A model's own randomness in updates, switched off.

Tokens are sampled without dropout, so an update with it compares the policy with another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# What modules and configurations call the probabilities and noises that they use while they train.
_NAME = re.compile(r"drop|jitter", re.IGNORECASE)


@contextmanager
def update_mode(model: nn.Module, dropout: bool) -> Iterator[None]:
    """Put a model for a while in the mode of an update, which has the model's own dropout or none."""
    if not dropout:
        with without_randomness(model):
            yield
        return
    modes = [(part, part.training) for part in model.modules()]
    model.train()
    try:
        yield
    finally:
        _restore(modes)


@contextmanager
def without_randomness(model: nn.Module) -> Iterator[None]:
    """Let a model compute for a while as it does when it samples; gradients flow, gradient checkpointing works.

    Modules are put in evaluation mode, but for those that compute themselves again in the backward pass, which
    transformers does in training mode alone: these lose their probabilities of dropout instead.
    """
    modes = [(part, part.training) for part in model.modules()]
    recomputing = [part for part in model.modules() if getattr(part, "gradient_checkpointing", False)]
    probabilities = [found for part in recomputing for found in _probabilities(part)]
    model.eval()
    try:
        for part in recomputing:
            part.training = True
        for holder, name, _ in probabilities:
            setattr(holder, name, 0.0)
        yield
    finally:
        for holder, name, value in reversed(probabilities):
            setattr(holder, name, value)
        _restore(modes)


def _restore(modes: list[tuple[nn.Module, bool]]) -> None:
    for part, mode in modes:
        part.training = mode


def _probabilities(module: nn.Module) -> Iterator[tuple[Any, str, float]]:
    """Yield the probabilities above zero of a module and its configuration: the object, the attribute, its value."""
    for holder in (module, vars(module).get("config")):
        for name, value in vars(holder).items() if hasattr(holder, "__dict__") else ():
            if isinstance(value, float) and value and _NAME.search(name):
                yield holder, name, value
