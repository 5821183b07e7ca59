"""What is wrong with settings, in words: where, what was got, what was expected, what to do."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from schemas.base import nearest_name
from schemas.settings.tree import allowed_values, either, entries_of, kind_of, sections_of, setting_names


class _Found(NamedTuple):
    """Where an error is: its name as a person writes it, and the section that the name's last part lies in."""

    names: tuple[str, ...]
    section: type[BaseModel]
    within: str  # The name of the section that the names are relative to, '' for the whole settings.

    @property
    def where(self) -> str:
        return ".".join(filter(None, (self.within, *self.names)))

    @property
    def field(self) -> FieldInfo:
        return self.section.model_fields[self.names[-1]]


def explain(error: ValidationError, model: type[BaseModel], source: str, section: str = "") -> str:
    """Turn a pydantic error into one line a problem: where, what was got, what was expected, what to do.

    `section` is the name of the section that the model stands for, where it is not the whole settings.
    """
    problems: dict[str, str] = {}
    located = [(item, _locate(model, item["loc"], section)) for item in error.errors(include_url=False)]
    # Where the kind itself is wrong, nothing is known of which settings its section may have.
    unknown_kinds = {found.where.removesuffix("kind") for _, found in located if found.where.endswith(".kind")}
    for item, found in located:
        if item["type"] == "extra_forbidden" and f"{found.where.rpartition('.')[0]}." in unknown_kinds:
            continue
        problem = _unknown(model, found) if item["type"] == "extra_forbidden" else _problem(item, found)
        # A value that fits none of a union's types, or several places of an array, are one problem.
        problems.setdefault(found.where, problem)
    return "\n".join(f"{source}: {problem}" for problem in problems.values())


def _locate(model: type[BaseModel], place: tuple[int | str, ...], within: str) -> _Found:
    """Follow pydantic's path; the parts that name a union's branch or an array's place are no part of the name."""
    names: list[str] = []
    key: list[str] = []  # The name that a person gave to an entry of a table, once something in it is meant.
    section, below = model, [model]
    entries: list[type[BaseModel]] = []
    for part in place:
        if len(below) > 1:
            below = [branch for branch in below if kind_of(branch) == part]
        elif below:
            section = below[0]
            field = section.model_fields.get(str(part))
            names += [*key, str(part)]
            below = sections_of(field.annotation) if field else []
            key, entries = [], entries_of(field.annotation) if field else []
        elif entries:
            key, below, entries = [str(part)], entries, []
    return _Found(tuple(names), section, within)


def _unknown(model: type[BaseModel], found: _Found) -> str:
    """Say which setting may have been meant: the same name elsewhere, or the nearest one here."""
    *parents, wrong = (*filter(None, [found.within]), *found.names)
    here = list(found.section.model_fields)
    elsewhere = [name for name in dict.fromkeys(setting_names(model)) if name.rpartition(".")[2] == wrong]
    if found.where in elsewhere:
        kind = kind_of(found.section)
        return f"unknown setting '{found.where}': kind = '{kind}' has none; it may have {', '.join(here)}"
    near = nearest_name(wrong, here)
    meant = elsewhere if 0 < len(elsewhere) <= 2 else [".".join([*parents, near])] if near else []
    if meant:
        return f"unknown setting '{found.where}'; did you mean {' or '.join(repr(name) for name in meant)}?"
    place = f"[{'.'.join(parents)}]" if parents else "the settings"
    return f"unknown setting '{found.where}'; {place} may have {', '.join(here) or 'no settings'}"


def _problem(item: Any, found: _Found) -> str:
    match item["type"]:
        case "value_error":
            message = str(item["msg"]).removeprefix("Value error, ")
            return f"{found.where}: {message}" if found.where else message
        case "missing" if not isinstance(item["loc"][-1], int):
            return f"{found.where}: is missing and has no default; set it{_meaning(found)}"
        case "union_tag_not_found":
            return f"{found.where}.kind: is missing; set it to {_kinds(found)}"
        case "union_tag_invalid":
            return f"{found.where}.kind: expected {_kinds(found)}, got {item['ctx']['tag']!r}"
        case _ if not found.names or sections_of(found.field.annotation):
            return f"{found.where or 'the settings'}: expected a section of settings, got {item['input']!r}"
        case "finite_number":
            return f"{found.where}: expected a finite {allowed_values(found.field)}, got {item['input']!r}"
        case _:
            return f"{found.where}: expected {allowed_values(found.field)}, got {item['input']!r}"


def _meaning(found: _Found) -> str:
    return f" ({found.field.description})" if found.field.description else ""


def _kinds(found: _Found) -> str:
    return either([repr(kind_of(section)) for section in sections_of(found.field.annotation)])
