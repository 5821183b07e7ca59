"""What decides a stage's work: the outputs of the stages before it, the settings it reads, the code that does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.plugins.check import plugin_sources
from flows.run.sources import sources_of
from schemas.base import hash_json
from schemas.records.ledger import StageName, StageRecord
from schemas.settings.added import without_added
from schemas.settings.chosen import chosen_plugins
from schemas.settings.root import Settings


@dataclass(frozen=True)
class StageKind:
    """A stage as its own module declares it.

    reads: the settings that it reads, sections whole or `section.key`; a change of any other leaves its work valid.
    code: the modules that do its work; what they import of the method counts too.
    """

    name: StageName
    reads: tuple[str, ...]
    code: tuple[str, ...]


def stage_sources(settings: Settings, stage: StageKind) -> dict[str, str]:
    """Return the sha256 of each source that decides how a stage is done: the program's, and those of its plugins.

    A plugin of one's own stands under the setting that names it.
    """
    shipped = [
        choice.kind.shipped[choice.name].partition(":")[0]
        for choice in chosen_plugins(settings)
        if choice.is_shipped and stage.name in choice.kind.stages
    ]
    own = {
        f"{setting}: {file}": sha256
        for setting, hashes in plugin_sources(settings, stage.name).items()
        for file, sha256 in hashes.items()
    }
    return {**sources_of((*stage.code, *shipped)), **own}


def code_hash(sources: Mapping[str, str]) -> str:
    """Return one hash of all sources."""
    return hash_json(dict(sources))


def input_hash(settings: Settings, stage: StageKind, upstream: Sequence[StageRecord | str], code: str) -> str:
    """Return the hash of a stage's inputs, `code` being the hash of its sources."""
    read = without_added(settings.model_dump(mode="json", include=_included(stage.reads)))
    inputs = [item if isinstance(item, str) else item.output_hash for item in upstream]
    return hash_json({"settings": read, "inputs": inputs, "code": code})


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
