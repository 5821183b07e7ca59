"""`sdsearch config`: what settings are in the end, where each value comes from, and how two of them differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console

from flows.console.terminal import make_table, print_line
from flows.settings.layers import DEFAULT, leaves, sources
from flows.settings.load import resolve, setting_differences, shipped_configs
from schemas.commands import as_toml
from schemas.settings.rules import ANSWER_LEAKS

Form = Literal["table", "toml"]


def show_config(config: str, overrides: Sequence[str], form: Form, *, everything: bool, console: Console) -> None:
    """Print settings with where each value comes from, or as a TOML file that stands alone.

    everything: the program's defaults too. Raises UserError as `load_settings` does.
    """
    resolved = resolve(config, overrides)
    source_of = sources(resolved.layers, resolved.settings)
    values = resolved.settings.model_dump(mode="json")
    if form == "toml":
        console.out("\n".join(toml_lines(values)), highlight=False)
        return
    rows = [
        (name, as_toml(value), source_of[name])
        for name, value in leaves(values)
        if everything or source_of[name] != DEFAULT
    ]
    console.print(make_table(("setting", "value", "from"), rows))
    if resolved.settings.hindsight.answer:
        print_line(console, f"note: {ANSWER_LEAKS}")
    if not everything:
        num_defaults = sum(source == DEFAULT for source in source_of.values())
        print_line(console, f"{num_defaults} more have the program's defaults: --all shows them")


def compare_configs(first: str, second: str, console: Console) -> None:
    """Print the settings in which two files differ; UserError as `load_settings` does."""
    ours, theirs = (resolve(name).settings for name in (first, second))
    rows = [(name, _cell(a), _cell(b)) for name, a, b in setting_differences(ours.model_dump_json(), theirs)]
    if rows:
        console.print(make_table(("setting", first, second), rows))
    else:
        print_line(console, f"{first} and {second} are the same settings")


def list_configs(console: Console) -> None:
    """Print the settings that come with the program."""
    known = {name: resolve(name).settings for name in shipped_configs()}
    rows = [(name, settings.model.path, settings.iterations) for name, settings in known.items()]
    console.print(make_table(("settings", "model", "iterations"), rows))


def toml_lines(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield a tree of settings as the lines of a TOML file."""
    yield from _section_lines(values, ())


def _section_lines(values: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    plain = {key: value for key, value in values.items() if key not in tables and value is not None}
    if names and (plain or not tables):
        yield from ("", f"[{'.'.join(map(_key, names))}]")
    yield from (f"{_key(key)} = {as_toml(value)}" for key, value in plain.items())
    for key, table in tables.items():
        yield from _section_lines(table, (*names, key))


def _key(name: str) -> str:
    is_bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if is_bare else json.dumps(name)


def _cell(value: Any) -> str:
    return "-" if value is None else as_toml(value) if not isinstance(value, dict) else json.dumps(value)
