"""Settings from a shipped or own TOML file, changed by `a.b=c` on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from flows.console.errors import UserError
from flows.plugins.check import complete_options
from flows.settings.layers import Layer, file_layers, leaves, merge
from flows.settings.model_folder import as_tree, model_settings
from flows.settings.template_files import with_template_text
from flows.settings.toml_files import SUFFIX
from schemas.commands import parse_value
from schemas.records.ledger import RunRecord
from schemas.settings.added import with_added
from schemas.settings.explain import explain
from schemas.settings.root import STORED, Settings
from sdsearch.plugins import PluginError

SET: Final = "--set"
_STUDY_PREFIX = "study_"


def shipped_configs() -> list[str]:
    """Return the names of the settings files that come with the program, sorted."""
    return [name for name in _shipped() if not name.startswith(_STUDY_PREFIX)]


def shipped_studies() -> list[str]:
    """Return the names of the study files that come with the program, sorted."""
    return [name for name in _shipped() if name.startswith(_STUDY_PREFIX)]


def _shipped() -> list[str]:
    names = (item.name for item in (files("flows") / "configs").iterdir())
    return sorted(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))


def new_run_name(config: str, made_at: datetime | None = None) -> str:
    """Return a name for a run that got none: the settings' name and the time, now when not given."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(config).stem)[:40].strip("-") or "run"
    return f"{stem}-{made_at or datetime.now(UTC):%Y%m%d-%H%M%S}"


def load_settings(config: str, overrides: Sequence[str] = ()) -> Settings:
    """Return the settings of `config`, a shipped name or the path of a TOML file, with `overrides` applied.

    What the file does not name comes from its `base`, where it has one. An override is `a.b=c`; `c` is a TOML value,
    and a bare word is a string. Settings that none of them names are those that the model folder brings, where it
    brings any. Raises UserError, one line a problem, for a file that is not there or no TOML, bases that lead round in
    a circle, unknown keys, wrong types and impossible combinations.
    """
    return resolve(config, overrides).settings


class Resolved(NamedTuple):
    """Settings, and the layers that they come from."""

    settings: Settings
    layers: tuple[Layer, ...]


def resolve(config: str, overrides: Sequence[str] = ()) -> Resolved:
    """Return what `load_settings` returns, with where it comes from; errors as there."""
    layers = file_layers(config, shipped_configs())
    bases = [layer.source for layer in layers[:-1]]
    if overrides:
        below, given = merge(layers), dict[str, Any]()
        for override in overrides:
            for tree in (below, given):
                _apply(tree, override)
        layers.append(Layer(SET, given))
    path = dict(leaves(merge(layers))).get("model.path")
    if isinstance(path, str) and (brought := model_settings(path)):
        layers.insert(0, Layer(f"model {path}", as_tree(brought)))
    source = f"{config} (base: {', '.join(bases)})" if bases else config
    return Resolved(_validated(merge(layers), f"{source} with --set" if overrides else source), tuple(layers))


def apply_overrides(values: dict[str, Any], overrides: Sequence[str], source: str) -> Settings:
    """Return settings from a complete tree of values with `overrides` applied; UserError, as above, names `source`."""
    for override in overrides:
        _apply(values, override)
    return _validated(values, f"{source} with --set" if overrides else source)


def _validated(values: dict[str, Any], source: str) -> Settings:
    try:
        values = with_template_text(values)
        # As JSON, since strict validation (no '5' for 5) takes arrays for tuples there alone.
        settings = Settings.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise UserError(explain(error, Settings, source)) from error
    try:
        return complete_options(settings)
    except PluginError as error:
        raise UserError("\n".join(f"{source}: {line}" for line in str(error).splitlines())) from error


def stored_settings(record: RunRecord) -> Settings:
    """Return the settings that a run was started with.

    Combinations that are refused today are accepted here; UserError when the settings do not fit this program at all.
    """
    try:
        return Settings.model_validate_json(record.settings_json, context=STORED)
    except ValidationError as error:
        problems = explain(error, Settings, f"settings of run '{record.run}', made by version {record.code_version}")
        raise UserError(f"{problems}; use the program that made the run") from error


def describe_differences(stored_json: str, settings: Settings) -> str:
    """Return `name: stored -> wanted` for each setting that differs from a run's stored ones, empty for none."""
    changes = setting_differences(stored_json, settings)
    return ", ".join(f"{name}: {stored} -> {wanted}" for name, stored, wanted in changes)


def setting_differences(stored_json: str, settings: Settings) -> list[tuple[str, Any, Any]]:
    """Return (name, stored, wanted) of each setting that differs from a run's stored ones."""
    return _differences(_completed(stored_json), settings.model_dump(mode="json"))


def _completed(stored_json: str) -> Any:
    """Return stored settings with the defaults of those that came later; as they are where they do not fit any more."""
    try:
        return Settings.model_validate_json(stored_json, context=STORED).model_dump(mode="json")
    except ValidationError:
        return with_added(json.loads(stored_json))


def _differences(stored: Any, wanted: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        names = [*stored, *(name for name in wanted if name not in stored)]
        parts = [_differences(stored.get(n), wanted.get(n), f"{path}.{n}".lstrip(".")) for n in names]
        return [change for part in parts for change in part]
    return [] if stored == wanted else [(path, stored, wanted)]


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
