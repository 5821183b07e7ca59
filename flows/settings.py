"""Settings from a shipped or own TOML file, changed by `a.b=c` on the command line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.errors import UserError
from schemas.base import explain, nearest_name
from schemas.config import Settings

_SUFFIX = ".toml"


def shipped_configs() -> list[str]:
    """Return the names of the settings files that come with the program, sorted."""
    names = (item.name for item in (files("flows") / "configs").iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def new_run_name(config: str) -> str:
    """Return a name for a run that got none: the settings' name and the time."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(config).stem)[:40].strip("-") or "run"
    return f"{stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def load_settings(config: str, overrides: Sequence[str] = ()) -> Settings:
    """Return the settings of `config`, a shipped name or the path of a TOML file, with `overrides` applied.

    An override is `a.b=c`; `c` is a TOML value, and a bare word is a string. Raises UserError, one line a problem,
    for a file that is not there or no TOML, unknown keys, wrong types and impossible combinations.
    """
    values = _parse(_read(config), config)
    for override in overrides:
        _apply(values, override)
    source = f"{config} with --set" if overrides else config
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, Settings, source)) from error


def _read(config: str) -> bytes:
    if config in shipped_configs():
        return (files("flows") / "configs" / f"{config}{_SUFFIX}").read_bytes()
    path = Path(config).expanduser()
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(_not_found(config)) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character.
        raise UserError(f"{config}: cannot be read ({error}); name a readable TOML file") from error


def _not_found(config: str) -> str:
    shipped = shipped_configs()
    near = nearest_name(Path(config).name.removesuffix(_SUFFIX), shipped)
    hint = f"did you mean '{near}'? " if near else ""
    return f"no settings file '{config}': {hint}give the path of a TOML file or one of {', '.join(shipped)}"


def _parse(content: bytes, config: str) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{config}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{config}: not TOML: {error}; mend that line") from error


def _apply(values: dict[str, Any], override: str) -> None:
    """Put the value of `a.b=c` into the tree, making the tables on its way."""
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {override}: expected name=value, such as update.learning_rate=3e-4")
    table = values
    for depth, part in enumerate(parts[:-1], 1):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UserError(
                f"--set {override}: '{'.'.join(parts[:depth])}' is a single value ({table!r}), not a section; "
                "name a setting that exists"
            )
    table[parts[-1]] = parse_value(text.strip(), f"--set {override}")


def parse_value(text: str, where: str) -> Any:
    """Return what TOML makes of the text; the text itself when it is a bare word. UserError for half a value."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text[:1] in ("[", "{", '"', "'"):
            raise UserError(f"{where}: the value is not TOML: {error}; quote it for the shell") from error
        return text
    return parsed["value"] if len(parsed) == 1 else text
