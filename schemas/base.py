"""The base of every record that crosses a stage boundary."""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class Record(BaseModel):
    """A frozen pydantic model that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def content_hash(self) -> str:
        """Return the sha256 (hex) of the record's canonical JSON."""
        return hash_json(self.model_dump(mode="json"))


def hash_json(value: Any) -> str:
    """Return the sha256 (hex) of a JSON value, keys sorted, no blanks."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def nearest_name(name: str, known: list[str]) -> str | None:
    """Return the known name most like `name`, or None when nothing is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return close[0] if close else None


def field_names(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Return the field names of the settings section that `path` leads to, [] if it leads nowhere."""
    for part in path:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def explain(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """Turn a pydantic error into one line a problem: where, what was got, what was expected, what to do."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "(settings)"
        if item["type"] == "extra_forbidden":
            near = nearest_name(str(item["loc"][-1]), field_names(model, item["loc"][:-1]))
            hint = f"; did you mean '{near}'?" if near else ""
            lines.append(f"{source}: unknown setting '{where}'{hint}")
        elif item["type"] in ("value_error", "missing"):
            lines.append(f"{source}: {where}: {item['msg'].removeprefix('Value error, ')}")
        else:
            lines.append(f"{source}: {where}: {item['msg']} (got {item['input']!r})")
    return "\n".join(lines)
