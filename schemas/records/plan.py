"""What `sdsearch plan --json` prints: what a run would take, and how each figure is known."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Record

Source = Literal["measured", "computed", "guessed"]
Unit = Literal["bytes", "seconds", "tokens", "rollouts"]


class Figure(Record):
    """A number, its unit, and how it is known."""

    value: float = Field(description="The number.")
    unit: Unit = Field(description="What it counts.")
    source: Source = Field(
        description="measured: on a run of this workspace with these settings. computed: follows from the settings and "
        "the model's shape. guessed: rests on a rate or a share that was not measured."
    )


class Plan(Record):
    """What a run of some settings would take on some GPUs."""

    config: str = Field(description="The settings, as they were named.")
    model: str = Field(description="Path or name of the model.")
    device: str = Field(description="A card's name, or this machine's CPU.")
    device_bytes: float = Field(description="Memory of one card, or of this machine.")
    ranks: int = Field(ge=1, description="Processes that train, each on a card of its own.")
    sharding: str = Field(description="distributed.sharding.")
    measured_on: str = Field(description="The run of this workspace that measured figures are from; '': none.")
    workload: dict[str, Figure] = Field(description="What an iteration samples and learns from, by name.")
    memory: dict[str, Figure] = Field(description="What lies in the memory of a card, by part.")
    seconds: dict[str, Figure] = Field(description="Duration of each stage of an iteration, of one, and of the run.")
    disk: dict[str, Figure] = Field(description="What a checkpoint, an iteration's records and the run take.")
    fits: bool = Field(description="Whether the fullest card's memory is enough.")
