"""The CUDA devices of this process, by name: for processes that it starts and that see some of them alone."""

from __future__ import annotations

import os
from collections.abc import Sequence

from flows.console.errors import UserError
from schemas.settings.cards import engine_numbers, is_on_cards
from schemas.settings.root import Settings


def cards_of(device: str) -> tuple[str, ...]:
    """Return the names that CUDA_VISIBLE_DEVICES knows the cards by where `device` is 'cuda', else none.

    `device` is a `model.device`; one with a number has chosen its card already.
    """
    return _visible_cards() if device == "cuda" else ()


def rank_cards(settings: Settings) -> tuple[str, ...]:
    """Return the names of the cards that this machine's ranks see, by local rank; empty: all of this process.

    Raises UserError as of `_named`.
    """
    return _named("distributed.devices", settings.distributed.devices) if is_on_cards(settings) else ()


def engine_cards(settings: Settings) -> tuple[str, ...]:
    """Return the names of the cards that an engine's processes see; empty: all of this process.

    Raises UserError as of `_named`.
    """
    return _named("sampling.devices", engine_numbers(settings)) if is_on_cards(settings) else ()


def free_cached() -> None:
    """Give the memory of cards back that torch keeps for later, so that another process of theirs can have it."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _named(setting: str, numbers: Sequence[int]) -> tuple[str, ...]:
    """Return the names of numbered cards; UserError for one that this process does not see."""
    visible = _visible_cards() if numbers else ()
    for number in numbers:
        if number >= len(visible):
            raise UserError(
                f"{setting} names card {number}, and this process sees {len(visible)} CUDA devices, numbered from 0; "
                "choose among these, or show it more with CUDA_VISIBLE_DEVICES"
            )
    return tuple(visible[number] for number in numbers)


def _visible_cards() -> tuple[str, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip())
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))
