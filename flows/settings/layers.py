"""Settings in layers: a base, the file that names it, the command line, what a model folder brings, the defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from flows.console.errors import UserError
from flows.settings.toml_files import read_toml
from schemas.paths import local_path
from schemas.plugins import KINDS, PLUGIN
from schemas.settings.root import Settings
from schemas.settings.tree import kind_of, sections_of

BASE: Final = "base"
DEFAULT: Final = "default"


class Layer(NamedTuple):
    """Values of one source; what stands in a later layer replaces what stands in an earlier one."""

    source: str
    values: dict[str, Any]


def file_layers(config: str, shipped: Sequence[str]) -> list[Layer]:
    """Return a settings file's layers, the lowest base first: `base = "quickstart"`, or the path of another file.

    A path is relative to the folder of the file that names it. Raises UserError for a file that is not there or no
    TOML, and for bases that lead round in a circle.
    """
    layers: list[Layer] = []
    name, known = config, list[str]()
    while True:
        key = name if name in shipped else str(local_path(name).resolve())
        if key in known:
            raise UserError(f"{config}: base leads round in a circle ({' -> '.join([*known, key])}); remove one base")
        known.append(key)
        values = read_toml(name, shipped, "settings")
        base = values.pop(BASE, None)
        layers.insert(0, Layer(name, values))
        if base is None:
            return layers
        if not isinstance(base, str) or not base:
            raise UserError(f"{name}: base: expected the name of shipped settings or the path of a file, got {base!r}")
        name = base if base in shipped else _beside(name, base, shipped)


def _beside(name: str, base: str, shipped: Sequence[str]) -> str:
    """Return a base's path, relative to the file that names it; a shipped file names shipped ones alone."""
    path = local_path(base)
    folder = Path() if name in shipped else local_path(name).parent
    # What is no path is told as it was written, with the shipped names beside it.
    return str(folder / path) if (folder / path).is_file() else base


def merge(layers: Sequence[Layer]) -> dict[str, Any]:
    """Return one tree of the layers' values: tables are merged key by key, anything else is replaced.

    Where a layer chooses another `kind` than the layers below it, what these have that the kind has not is left out;
    where it chooses another plugin, the options of the former one are.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        _drop_options(merged, layer.values)
        _put(merged, layer.values, Settings)
    return merged


def _drop_options(below: dict[str, Any], values: Mapping[str, Any]) -> None:
    for kind in KINDS.values():
        section, _, field = kind.setting.partition(".")
        former, chosen = below.get(section), values.get(section)
        if (
            isinstance(former, dict)
            and isinstance(chosen, dict)
            and chosen.get(field, former.get(field)) != former.get(field)
        ):
            names = chosen[field] if isinstance(chosen[field], list) else ()
            options = former.pop(kind.options.partition(".")[2], None) or {}
            # Of several, those that stay keep theirs.
            kept = {name: options[name] for name in names if isinstance(name, str) and name in options}
            if kept:
                former[kind.options.partition(".")[2]] = kept


def _put(below: dict[str, Any], values: Mapping[str, Any], *sections: Any) -> None:
    kind = values.get("kind")
    if isinstance(kind, str) and below.get("kind", kind) != kind:
        by_kind = {kind_of(section): section for section in sections}
        chosen = [section for name in (kind, PLUGIN) if (section := by_kind.get(name))][:1]
        for name in [name for name in below if chosen and name not in chosen[0].model_fields]:
            del below[name]
    for name, value in values.items():
        under = below.get(name)
        if isinstance(value, dict) and isinstance(under, dict):
            _put(under, value, *_sections_below(sections, name))
        else:
            below[name] = _copied(value)


def _copied(value: Any) -> Any:
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value


def _sections_below(sections: Sequence[Any], name: str) -> list[Any]:
    fields = [section.model_fields[name] for section in sections if name in section.model_fields]
    return [below for field in fields for below in sections_of(field.annotation)]


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (full name, value) of every setting of a tree."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def sources(layers: Sequence[Layer], settings: Settings) -> dict[str, str]:
    """Return where each setting's value comes from: the topmost layer that names it, or the program's default."""
    named = {name: layer.source for layer in layers for name, _ in leaves(layer.values)}
    return {name: named.get(name, DEFAULT) for name, _ in leaves(settings.model_dump(mode="json"))}
