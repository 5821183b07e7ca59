"""The plugins of settings: checked when the settings are read, and their sources for what a run keeps and compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from schemas.records.ledger import StageName
from schemas.settings.chosen import chosen_plugins, with_options
from schemas.settings.root import Settings
from sdsearch.plugins import load_plugin, open_plugin, refresh

if TYPE_CHECKING:
    from flows.tracking.ports import Sink


def complete_options(settings: Settings) -> Settings:
    """Return the settings with every option of their plugins written out, defaults too.

    Raises PluginError for a plugin that is not there or of another kind, and for options that it does not take. A
    plugin whose file has changed since it was last imported is imported anew.
    """
    refresh()
    for choice in chosen_plugins(settings):
        if choice.is_shipped:
            continue  # Imported by the stage that uses it: many commands need none.
        opened = open_plugin(choice.kind.name, choice.name, choice.options)
        if load_plugin(choice.kind.name, choice.name).options_model is not None:
            settings = with_options(settings, choice, opened.model_dump(mode="json"))
    return settings


def open_plugins(settings: Settings) -> list[str]:
    """Open every plugin of the settings, as a run will, and return their names; errors as of `complete_options`."""
    refresh()
    for choice in chosen_plugins(settings):
        open_plugin(choice.kind.name, choice.name, choice.options)
    return [choice.name for choice in chosen_plugins(settings)]


def open_sinks(settings: Settings) -> dict[str, Sink]:
    """Return the trackers of the settings by name, ready to be opened; errors as of `complete_options`."""
    return {
        choice.name: open_plugin(choice.kind.name, choice.name, choice.options)
        for choice in chosen_plugins(settings)
        if choice.kind.name == "sink"
    }


def check_sinks(settings: Settings) -> list[str]:
    """Return the names of the trackers; UserError for what one of them lacks, such as a package."""
    sinks = open_sinks(settings)
    for sink in sinks.values():
        sink.check()
    return list(sinks)


def plugin_sources(settings: Settings, stage: StageName | None = None) -> dict[str, Mapping[str, str]]:
    """Return the sha256 of each source file of the plugins that are not shipped, by setting; of one stage, or of all.

    The files as they were when the plugin was imported: what runs is what is hashed. Shipped plugins are part of the
    program's own sources.
    """
    return {
        choice.kind.setting: load_plugin(choice.kind.name, choice.name).sources.hashes
        for choice in chosen_plugins(settings)
        if not choice.is_shipped and choice.kind.decides and (stage is None or stage in choice.kind.stages)
    }
