"""`rollout.template` as the path of a file: its text takes the path's place, so that a run keeps it."""

from __future__ import annotations

from typing import Any

from schemas.errors import UserError
from schemas.paths import local_path
from schemas.settings.templates import QUESTION, TEMPLATES


def with_template_text(values: dict[str, Any]) -> dict[str, Any]:
    """Return a tree of settings with the text of the file that `rollout.template` names, if it names one.

    A path is relative to the current folder. UserError for a file that cannot be read as text.
    """
    rollout = values.get("rollout")
    if not isinstance(rollout, dict):
        return values
    name = rollout.get("template")
    if not isinstance(name, str) or not name.strip() or name in TEMPLATES or QUESTION in name:
        return values
    try:
        path = local_path(name)
        if not path.is_file():
            return values  # Its check says what is expected.
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"rollout.template '{name}': {error}; expected a text file with {QUESTION} in it") from error
    if text.count(QUESTION) != 1:
        raise UserError(
            f"rollout.template '{name}': the file has {QUESTION} {text.count(QUESTION)} times; expected it once, where "
            "the question stands"
        )
    return {**values, "rollout": {**rollout, "template": text}}
