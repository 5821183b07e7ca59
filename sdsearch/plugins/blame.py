"""Whose error is it? What was raised in a plugin is told in one line, with the place in the plugin's file."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import ClearError, reason_of
from sdsearch.plugins.loading import Plugin, PluginError, loaded_plugins


@contextmanager
def blaming_plugins() -> Iterator[None]:
    """Turn what is raised in the source of a person's own plugin, or in what it calls, into a PluginError.

    The message names the setting, the plugin and the line. Errors for people pass as they are, and so do those of which
    no frame is in a plugin's files, running out of memory, and Ctrl-C.
    """
    try:
        yield
    except (ClearError, MemoryError):
        raise
    except Exception as error:  # Whatever a person's own code raises.
        told = _told(error)
        if told is None:
            raise
        raise told from error


def _told(error: Exception) -> PluginError | None:
    """Return the error that names a plugin: the one whose frame is nearest to where `error` was raised."""
    owners = {
        plugin.sources.folder / name: plugin
        for plugin in loaded_plugins()
        if not plugin.is_shipped
        for name in plugin.sources.hashes
    }
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        plugin = owners.get(Path(frame.filename).resolve())
        if plugin is not None:
            return _error(plugin, f"{Path(frame.filename).name}:{frame.lineno}", error)
    return None


def _error(plugin: Plugin, place: str, error: Exception) -> PluginError:
    reason = reason_of(error)
    named = reason if reason.startswith(type(error).__name__) else f"{type(error).__name__}: {reason}"
    return PluginError(
        f"{plugin.kind.setting}: '{plugin.name}' failed at {place} with {named}; correct it, or choose another "
        f"{plugin.kind.title}"
    )
