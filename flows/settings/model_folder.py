"""The settings that a model folder brings: below a person's own values, above the program's defaults."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from flows.console.errors import UserError
from flows.settings.layers import leaves
from flows.settings.toml_files import read_toml
from schemas.base import nearest_name
from schemas.paths import local_path
from schemas.settings.explain import explain
from schemas.settings.root import Settings
from schemas.settings.tree import either

MODEL_SETTINGS: Final = "sdsearch.toml"
"""The file of a model folder that has them."""

BELONGS: Final = (
    "rollout.template",
    "rollout.max_searches",
    "rollout.max_new_tokens",
    "rollout.max_prompt_tokens",
    "rollout.max_observation_tokens",
    "rollout.temperature",
    "hindsight.max_block_tokens",
    "distillation.alpha",
    "distillation.warmup_iterations",
    "update.learning_rate",
    "update.rollouts_per_step",
    "data.questions_per_iteration",
)
"""What belongs to a model: its protocol and limits, and the strength of a step with the batch that it holds for.

Nothing here names a place, a device or code, so that a folder from elsewhere can do no harm.
"""

_MINI: Final = "mini"
_LARGEST_BYTES: Final = 64_000
_FAR: Final = 10.0


def local_folder(path: str) -> Path:
    """Return the folder that `model.path` names, whether it exists or not; 'mini' is the shipped mini policy."""
    return Path(str(files("sdsearch.world") / _MINI)) if path == _MINI else local_path(path)


def model_settings(path: str) -> dict[str, Any]:
    """Return what a model folder brings, full name to value; empty without a file, and for a name of the hub.

    Raises UserError, which names the file, for one that cannot be read, names other settings than `BELONGS`, or has
    values that are none.
    """
    file = _file_of(path)
    if file is None:
        return {}
    if file.stat().st_size > _LARGEST_BYTES:
        raise UserError(f"{file}: {file.stat().st_size} bytes, expected a few settings; remove it")
    tree = read_toml(str(file), (), "settings")
    named = dict(leaves(tree))
    for name in named:
        if name not in BELONGS:
            raise UserError(f"{file}: '{name}' is no setting that a model may bring{_meant(name)}; remove it")
    try:
        Settings.model_validate_json(json.dumps({**tree, "model": {"path": path}}, default=str), strict=True)
    except ValidationError as error:
        raise UserError(explain(error, Settings, str(file))) from error
    return named


def as_tree(brought: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model brings as a tree of sections."""
    tree: dict[str, Any] = {}
    for name, value in brought.items():
        section, _, key = name.partition(".")
        tree.setdefault(section, {})[key] = value
    return tree


def exported(settings: Settings) -> bytes:
    """Return the content of the file that goes with a model trained by these settings."""
    names = [name for name in BELONGS if settings.distillation.enabled or not name.startswith("distillation.")]
    lines = (f"{name} = {_written(_value(settings, name))}\n" for name in names)
    return f"# What belongs to this model; a settings file or --set goes first.\n{''.join(lines)}".encode()


def brought_lines(settings: Settings) -> list[str]:
    """Return what the model brings, as a person reads it: what these settings have so, and what otherwise."""
    brought = model_settings(settings.model.path)
    same: list[str] = []
    other: list[str] = []
    for name, own in brought.items():
        value = _value(settings, name)
        if value == own:
            same.append(f"{name} = {_written(own)}")
        else:
            other.append(f"{name} = {_written(value)} (the model's: {_written(own)})")
    titles = {"as the model brings it": same, "otherwise than the model brings it": other}
    return [f"{title}: {', '.join(items)}" for title, items in titles.items() if items]


def model_notes(settings: Settings) -> list[str]:
    """Return where settings clearly do not belong to the model, a sentence each; none where its file broke by now."""
    path = settings.model.path
    try:
        brought = model_settings(path)
    except UserError:
        return []
    return [
        f"{name} is {_written(_value(settings, name))}, model {path} was made for {_written(brought[name])}; "
        f"leave {name} out to have that"
        for name, are_apart in _APART.items()
        if name in brought and are_apart(_value(settings, name), brought[name])
    ]


def _written(value: Any) -> str:
    """Return a value as a settings file has it."""
    return json.dumps(value)


def _far(value: float, own: float) -> bool:
    return not own / _FAR <= value <= own * _FAR


_APART: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "rollout.template": lambda value, own: value != own,
    "update.learning_rate": _far,
}
"""What hardly works with other values than the model's own, and from where on."""


def _file_of(path: str) -> Path | None:
    if not path.strip():
        return None
    try:
        file = local_folder(path) / MODEL_SETTINGS
        return file if file.is_file() else None
    except (OSError, ValueError, RuntimeError):  # No path at all: what reads the model says so.
        return None


def _meant(name: str) -> str:
    near = nearest_name(name, list(BELONGS))
    return f"; did you mean '{near}'?" if near else f" (it may bring {either(list(BELONGS))})"


def _value(settings: Settings, name: str) -> Any:
    section, _, key = name.partition(".")
    return getattr(getattr(settings, section), key)
