"""`sdsearch plugins`: what settings can choose, by kind, and where it comes from."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.console import Console

from flows.console.terminal import make_table, print_line
from flows.settings.load import load_settings
from schemas.plugins import KINDS, PluginKind, installed
from schemas.settings.chosen import chosen_plugins
from sdsearch.plugins import PluginError, load_plugin


class _Row(NamedTuple):
    kind: str
    name: str
    used: str
    origin: str
    settings: str
    what: str


def list_plugins(config: str | None, overrides: Sequence[str], console: Console) -> None:
    """Print a row a plugin; with `config`, those that the settings use are marked and their own are listed too.

    Raises UserError for settings that cannot be read.
    """
    chosen = [] if config is None else chosen_plugins(load_settings(config, overrides))
    used = {kind.name: [choice.name for choice in chosen if choice.kind is kind] for kind in KINDS.values()}
    rows = [_row(kind, name, used[kind.name]) for kind in KINDS.values() for name in _names(kind, used[kind.name])]
    with_marks = ("kind", "name", "used", "from", "settings", "what it is")
    columns = with_marks if chosen else tuple(name for name in with_marks if name != "used")
    console.print(make_table(columns, [_cells(row, bool(chosen)) for row in rows]))
    for kind in KINDS.values():
        number = "s" if kind.setting.endswith("s") else ""
        print_line(console, f"{kind.setting} chooses the {kind.title}{number}; a package adds more as {kind.group}")


def _names(kind: PluginKind, used: Sequence[str]) -> Iterator[str]:
    yield from dict.fromkeys([*kind.shipped, *installed(kind), *used])


def _row(kind: PluginKind, name: str, used: Sequence[str]) -> _Row:
    mark = "yes" if name in used else ""
    try:
        plugin = load_plugin(kind.name, name)
    except PluginError as error:
        return _Row(kind.title, name, mark, "-", "-", f"cannot be used: {error}")
    announced = installed(kind).get(name)
    package = announced.dist.name if announced and announced.dist else ""
    origin = "shipped" if plugin.is_shipped else f"package {package}" if package else str(plugin.file)
    model = plugin.options_model
    settings = ", ".join(model.model_fields) if model else ""
    what = (inspect.getdoc(plugin.target) or "").partition("\n")[0]
    return _Row(kind.title, name, mark, f"{origin}: {plugin.path}" if origin == "shipped" else origin, settings, what)


def _cells(row: _Row, with_marks: bool) -> tuple[str, ...]:
    return row if with_marks else (row.kind, row.name, row.origin, row.settings, row.what)
