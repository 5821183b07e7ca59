"""Plugins: found by name, imported, checked to be of their kind, and hashed."""

from __future__ import annotations

from sdsearch.plugins.blame import blaming_plugins
from sdsearch.plugins.loading import Plugin, PluginError, load_plugin, open_plugin, refresh

__all__ = ["Plugin", "PluginError", "blaming_plugins", "load_plugin", "open_plugin", "refresh"]
