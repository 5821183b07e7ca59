"""From the name of a plugin in the settings to the class or function that does the work."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from schemas.base import nearest_name
from schemas.errors import UserError, reason_of
from schemas.plugins import KINDS, PluginKind, import_path_of
from schemas.settings.explain import explain
from sdsearch.plugins.sources import Sources, find_module, module_sources


class PluginError(UserError):
    """A plugin that cannot be found, imported or used; the message names the setting that chose it."""


class Plugin(NamedTuple):
    """A plugin as it was imported, with its source files at that moment."""

    kind: PluginKind
    name: str
    path: str
    target: Any
    file: Path
    sources: Sources

    @property
    def is_shipped(self) -> bool:
        """True for a plugin that comes with the program."""
        return self.name in self.kind.shipped

    @property
    def options_model(self) -> type[BaseModel] | None:
        """The model of the plugin's own settings, None for a function."""
        return self.target if isinstance(self.target, type) else None


_LOADED: dict[tuple[str, str], Plugin] = {}
_FOLDERS: list[str] = []  # What was added to sys.path: the current folder.


def load_plugin(kind: str, name: str) -> Plugin:
    """Return the plugin of a name; the same one until `refresh`, so that a run keeps the code that it began with.

    Raises PluginError for one that is not there, cannot be imported or is of another kind.
    """
    if (kind, name) not in _LOADED:
        _LOADED[kind, name] = _load(KINDS[kind], name)
    return _LOADED[kind, name]


def open_plugin(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """Return a plugin ready for use: a function, or an object of its class with these options.

    Raises PluginError as `load_plugin`, and for options that the plugin's model does not have or take.
    """
    plugin = load_plugin(kind, name)
    if plugin.options_model is None:
        if options:
            raise PluginError(
                f"{plugin.kind.options}: '{name}' is a function and has no settings; expected none, got "
                f"{', '.join(options)}; remove them"
            )
        return plugin.target
    try:
        # As JSON, as all settings are checked: strict, and arrays for tuples.
        return plugin.options_model.model_validate_json(json.dumps(dict(options), default=str), strict=True)
    except ValidationError as error:
        raise PluginError(explain(error, plugin.options_model, f"'{name}'", plugin.kind.options)) from error


def loaded_plugins() -> list[Plugin]:
    """Return the plugins that are in use in this process, the shipped ones too."""
    return list(_LOADED.values())


def refresh() -> None:
    """Forget the plugins whose source files have changed since they were imported; they are imported anew."""
    foreign = {key: plugin for key, plugin in _LOADED.items() if not plugin.is_shipped}
    if foreign:
        _search_here()
    for key, plugin in foreign.items():
        if not _is_unchanged(plugin):
            _forget(plugin.sources)
            del _LOADED[key]


def _is_unchanged(plugin: Plugin) -> bool:
    module = plugin.path.partition(":")[0]
    spec = find_module(module)
    try:
        return spec is not None and _sources(module, spec, plugin.name) == plugin.sources
    except PluginError:  # Broken by now: importing it anew says how.
        return False


def _forget(sources: Sources) -> None:
    """Take the modules of these files out of Python's table, so that they are read again."""
    files = {str(sources.folder / name) for name in sources.hashes}
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if origin is not None and str(Path(origin).resolve()) in files:
            del sys.modules[name]


def _load(kind: PluginKind, name: str) -> Plugin:
    try:
        path = import_path_of(kind, name)
    except ValueError as error:
        raise PluginError(f"{kind.setting}: {error}") from error
    module, _, attribute = path.partition(":")
    where = f"{kind.setting} '{name}'"
    if name not in kind.shipped:
        _search_here()
    spec = find_module(module)
    if spec is None or spec.origin is None:
        raise PluginError(
            f"{where}: no module '{module}' in {Path.cwd()} or among the installed packages; check the name, or start "
            "from the folder that it is in"
        )
    sources = _sources(module, spec, where)
    target = _attribute(_import(module, spec, where), attribute, f"{where}: {spec.origin}")
    _check_kind(kind, target, where)
    return Plugin(kind, name, path, target, Path(spec.origin), sources)


def _search_here() -> None:
    """Let Python import from the current folder, as for a script; libraries come first, so that none is replaced."""
    here = str(Path.cwd())
    if here not in sys.path:
        for former in _FOLDERS:
            if former in sys.path:
                sys.path.remove(former)
        _FOLDERS[:] = [here]
        sys.path.append(here)


def _sources(module: str, spec: ModuleSpec, where: str) -> Sources:
    assert spec.origin is not None, "a module of a file"
    try:
        return module_sources(module, Path(spec.origin))
    except (SyntaxError, ValueError, OSError) as error:
        raise PluginError(f"{where}: {spec.origin} cannot be read as Python ({reason_of(error)}); repair it") from error


def _import(module: str, spec: ModuleSpec, where: str) -> Any:
    known = getattr(sys.modules.get(module), "__file__", spec.origin)
    if known != spec.origin:
        del sys.modules[module]  # Another file of the same name, from a folder that was the current one before.
    try:
        return importlib.import_module(module)
    except Exception as error:  # A person's module may raise anything.
        raise PluginError(
            f"{where}: importing {spec.origin} failed: {type(error).__name__}: {reason_of(error)}; repair it"
        ) from error


def _attribute(module: Any, name: str, where: str) -> Any:
    if hasattr(module, name):
        return getattr(module, name)
    near = nearest_name(name, [known for known in vars(module) if not known.startswith("_")])
    raise PluginError(f"{where} has no '{name}'; {f'did you mean {near!r}?' if near else 'check the name'}")


def base_of(kind: PluginKind) -> type:
    """Return the class that the plugins of a kind are derived from."""
    module, _, name = kind.base.partition(":")
    base: type = getattr(importlib.import_module(module), name)
    return base


def _check_kind(kind: PluginKind, target: Any, where: str) -> None:
    """Raise PluginError for what is neither a class of the kind nor a function that takes its parameters."""
    expected = f"expected a class derived from {kind.base.replace(':', '.')}"
    if isinstance(target, type):
        base = base_of(kind)
        if not issubclass(target, base) or inspect.isabstract(target):
            raise PluginError(f"{where}: got the class {target.__name__}; {expected}{_missing(target)}")
        return
    if kind.parameters is not None:
        expected += f", or a function of ({', '.join(kind.parameters)})"
    if kind.parameters is None or not inspect.isfunction(target):
        raise PluginError(f"{where}: got {type(target).__name__} {str(target)[:80]}; {expected}")
    try:
        inspect.signature(target).bind(*kind.parameters)
    except TypeError as error:
        raise PluginError(f"{where}: got {target.__name__}{inspect.signature(target)}; {expected}") from error


def _missing(target: type) -> str:
    names = sorted(getattr(target, "__abstractmethods__", ()))
    return f" that has {', '.join(names)}" if names else ""
