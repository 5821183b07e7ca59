"""Cards that a plan can be made for, by their data sheets."""

from __future__ import annotations

from typing import Final, NamedTuple

from flows.console.errors import UserError
from flows.doctor.hardware import Hardware
from schemas.base import nearest_name
from schemas.settings.root import Settings


class Card(NamedTuple):
    """What computes: memory in bytes, dense bfloat16 operations a second, bytes a second from its memory.

    train_share and forward_share: which part of the operations training and forward passes reach, by guess;
    read_share: which part of the bandwidth generation reaches.
    """

    name: str
    memory_bytes: float
    operations: float
    bandwidth: float
    train_share: float = 0.35
    forward_share: float = 0.45
    read_share: float = 0.5


# Memory as torch reports it, below the round number of the data sheet.
CARDS: Final = {
    card.name: card
    for card in (
        Card("a100", 84.9e9, 312e12, 2.04e12),
        Card("h100", 84.9e9, 989e12, 3.35e12),
        Card("h200", 150.1e9, 989e12, 4.8e12),
        Card("b200", 191e9, 2250e12, 8.0e12),
        Card("l40s", 47.7e9, 362e12, 0.864e12),
        Card("rtx4090", 25.3e9, 165e12, 1.008e12),
    )
}
# One core of two measured with a model of 135 M: 1.0e11 operations a second in forward and backward passes of both,
# 1.5e11 in forward passes, 2.9e10 while it generates, which is bound by memory (docs/explanation/benchmarks.md).
_CORE_OPERATIONS: Final = 7.5e10
_CPU_BANDWIDTH: Final = 2e10


def find_card(name: str) -> Card:
    """Return a card by its name, in small or capital letters; UserError with the nearest name for another."""
    known = CARDS.get(name.lower())
    if known is None:
        near = nearest_name(name.lower(), list(CARDS))
        hint = f"did you mean '{near}'?" if near else f"known are {', '.join(CARDS)}"
        raise UserError(f"--gpu: no figures of a card '{name}'; {hint}")
    return known


def card_here(settings: Settings, hardware: Hardware, cores: int) -> Card:
    """Return what the settings' device is on this machine; UserError for a GPU that is not here or not known."""
    if settings.model.device == "cpu":
        return Card("CPU", hardware.ram_bytes, cores * _CORE_OPERATIONS, _CPU_BANDWIDTH, 0.65, 1.0, 1.0)
    here = hardware.gpus[0].name.lower() if hardware.gpus else ""
    for card in CARDS.values():
        if card.name in here.replace(" ", ""):
            return card._replace(memory_bytes=hardware.gpus[0].total_bytes)
    found = f"'{hardware.gpus[0].name}' is not known" if hardware.gpus else "this machine has none"
    raise UserError(
        f"model.device is '{settings.model.device}', and {found}; name a card to plan for: --gpu {' | '.join(CARDS)}"
    )
