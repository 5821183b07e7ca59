"""What decides a stage's work: its upstream's outputs, the settings it reads, the program's and its plugins' code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from flows.plugins.check import plugin_sources
from schemas.base import hash_json
from schemas.records.ledger import StageName, StageRecord
from schemas.settings.root import Settings


@dataclass(frozen=True)
class StageKind:
    """A stage as its own module declares it: its name and the settings that it reads, sections whole or `section.key`.

    A change of any other setting leaves its work valid.
    """

    name: StageName
    reads: tuple[str, ...]


def input_hash(settings: Settings, stage: StageKind, upstream: Sequence[StageRecord | str]) -> str:
    """Return the hash of a stage's inputs: work that was done with the same ones is not done again."""
    read = settings.model_dump(mode="json", include=_included(stage.reads))
    inputs = [item if isinstance(item, str) else item.output_hash for item in upstream]
    plugins = plugin_sources(settings, stage.name)
    code: dict[str, Any] = {"code": version("sdsearch")} | ({"plugins": plugins} if plugins else {})
    return hash_json({"settings": read, "inputs": inputs, **code})


def _included(reads: Sequence[str]) -> dict[str, Any]:
    """Return what pydantic's `include` takes for dotted names."""
    included: dict[str, Any] = {}
    for name in reads:
        section, _, key = name.partition(".")
        if not key:
            included[section] = True
        elif included.setdefault(section, set()) is not True:
            included[section].add(key)
    return included
