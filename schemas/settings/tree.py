"""What the settings tree is made of, read off its annotations: sections, names, and what a value may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from schemas.plugins import PLUGIN, Names

_PLAIN: Final[dict[Any, str]] = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "values"}


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that an annotation may hold: one, several where a `kind` chooses, or none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (tuple, dict, Literal):
        return []
    return [section for argument in get_args(annotation) for section in sections_of(argument)]


def entries_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that are the values of a table whose names a person chooses; none for anything else."""
    return sections_of(get_args(annotation)[1]) if get_origin(annotation) is dict else []


def kind_of(section: type[BaseModel]) -> str | None:
    """Return the value of `kind` that chooses a section, 'plugin' for any plugin's name, None where nothing chooses."""
    field = section.model_fields.get("kind")
    if field is None:
        return None
    values = get_args(field.annotation)
    return str(values[0]) if values else PLUGIN


def setting_names(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the full name of every setting below `model`, whatever kinds are chosen."""
    for name, field in model.model_fields.items():
        sections = sections_of(field.annotation)
        for section in sections:
            yield from setting_names(section, (*prefix, name))
        if not sections:
            yield ".".join((*prefix, name))


def allowed_values(field: FieldInfo) -> str:
    """Return in words what a setting may be, such as `integer ≥ 1` or `'f1' or 'em'`."""
    return _allowed(field.annotation, field.metadata)


def _allowed(annotation: Any, metadata: Sequence[Any]) -> str:
    if names := [item for item in metadata if isinstance(item, Names)]:
        return names[0].allowed()
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner, *fields = arguments
        own = (item for field in fields for item in getattr(field, "metadata", (field,)))
        return _allowed(inner, [*metadata, *own])
    if origin is Literal:
        return either([repr(value) for value in arguments])
    if origin is tuple and arguments[-1] is Ellipsis:
        least = "non-empty " if any(isinstance(item, MinLen) for item in metadata) else ""
        return f"{least}array of {_allowed(arguments[0], [])}"
    if origin is tuple:
        return f"array of {len(arguments)}: {_allowed(arguments[0], [])}"
    if entries := entries_of(annotation):
        return f"table of tables with {' and '.join(entries[0].model_fields)}"
    if origin is dict:
        return f"table of {_allowed(arguments[1], [])}"
    if origin is not None or not isinstance(annotation, type):
        return either([_allowed(argument, []) for argument in arguments])
    if issubclass(annotation, BaseModel):
        return "section"
    least = "non-empty " if any(isinstance(item, MinLen) for item in metadata) else ""
    return f"{least}{_PLAIN.get(annotation, annotation.__name__)}{_bounds(metadata)}"


def _bounds(metadata: Sequence[Any]) -> str:
    signs = ((Ge, "≥", "ge"), (Gt, ">", "gt"), (Le, "≤", "le"), (Lt, "<", "lt"))
    parts = [
        f"{sign} {_number(getattr(item, name))}"
        for item in metadata
        for kind, sign, name in signs
        if isinstance(item, kind)
    ]
    parts += [f"of at most {item.max_length} characters" for item in metadata if isinstance(item, MaxLen)]
    parts += [f"like {item.pattern}" for item in metadata if getattr(item, "pattern", None)]
    return f" {' and '.join(parts)}" if parts else ""


def _number(value: float) -> str:
    large = isinstance(value, int) and value > 2**20 and value.bit_count() == 1
    return f"2^{int(value).bit_length() - 1}" if large else str(value)


def either(parts: Sequence[str]) -> str:
    """Return `a, b or c`."""
    return " or ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
