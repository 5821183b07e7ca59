"""`sdsearch plan`: what a run of some settings would take, before anything of it is there."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from flows.console.errors import UserError
from flows.doctor.footprint import guessed_shape, shape_of
from flows.doctor.hardware import read_hardware
from flows.doctor.hub import model_files
from flows.plan.cards import card_here, find_card
from flows.plan.estimate import Planned, disk, memory, seconds, workload
from flows.plan.measured import find_measured
from flows.settings.load import load_settings
from schemas.paths import local_path
from schemas.records.plan import Plan
from schemas.settings.root import Settings
from storage.workspace import Workspace


def make_plan(config: str, overrides: Sequence[str], folder: Path, gpu: str | None, gpus: int | None) -> Plan:
    """Return what a run takes on `gpus` cards of a kind, each with a rank; None: the settings' ranks, this machine.

    Raises UserError for settings, cards and models that nothing is known of.
    """
    settings = _on_cards(load_settings(config, [*overrides, *_ranks(gpus)]), gpu)
    model = model_files(settings.model.path)
    known = shape_of(model.config) if model.config else None
    shape = known or guessed_shape(settings.model.path)
    if shape is None:
        raise UserError(
            f"model.path '{settings.model.path}' is not here, and its name tells no size; get the model first: its "
            "size follows from its config.json"
        )
    if gpu is None:
        card = card_here(settings, read_hardware(with_gpus=settings.model.device != "cpu"), os.cpu_count() or 1)
    else:
        card = find_card(gpu)
    measured = find_measured(Workspace(local_path(folder).resolve()), settings)
    is_here = gpu is None and measured is not None and measured.host == socket.gethostname()
    planned = Planned(settings, shape, card, measured, is_here, known is not None)
    work, held = workload(planned), memory(planned)
    whole = held["machine" if settings.model.device == "cpu" else "card"].value
    return Plan(
        config=config,
        model=settings.model.path,
        device=card.name,
        device_bytes=card.memory_bytes,
        ranks=settings.distributed.ranks,
        sharding=settings.distributed.sharding,
        measured_on=measured.run if measured else "",
        workload=work,
        memory=held,
        seconds=seconds(planned, work),
        disk=disk(planned),
        fits=whole <= card.memory_bytes,
    )


def _ranks(gpus: int | None) -> list[str]:
    return [] if gpus is None else [f"distributed.ranks={gpus}"]


def _on_cards(settings: Settings, gpu: str | None) -> Settings:
    """Return the settings with a CUDA device where a card is named and the settings have none."""
    if gpu is None or settings.model.device != "cpu":
        return settings
    return settings.model_copy(update={"model": settings.model.model_copy(update={"device": "cuda"})})
