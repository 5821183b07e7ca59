"""The public names with their signatures: `python -m tests.flows.api.signatures > tests/flows/api/public.txt`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from functools import cached_property

import sdsearch
from flows.api.iteration import Iteration, Records
from flows.api.method import Loss, Teacher
from flows.api.policy import Policy
from flows.api.workspace import Run, Workspace

TYPES = (Workspace, Run, Iteration, Records, Policy, Teacher, Loss)


def signatures() -> Iterator[str]:
    """Yield a line a public function, and a line a public member of each type that they return."""
    for name in sdsearch.__all__:
        value = getattr(sdsearch, name)
        yield f"sdsearch.{name}" if inspect.isclass(value) else f"sdsearch.{name}{_shown(value)}"
    for kind in TYPES:
        yield ""
        yield from sorted(f"{kind.__name__}.{line}" for line in _members(kind))


def _members(kind: type) -> Iterator[str]:
    """Yield the fields, properties and methods of a type, but for those whose name begins with an underscore."""
    if dataclasses.is_dataclass(kind):
        yield from (f"{field.name}: {field.type}" for field in dataclasses.fields(kind) if field.name[0] != "_")
    for name, value in vars(kind).items():
        if name.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"{name}: {_returned(value.fget)}"
        elif isinstance(value, cached_property):
            yield f"{name}: {_returned(value.func)}"
        elif inspect.isfunction(value):
            yield f"{name}{_shown(value)}"


def _shown(function: object) -> str:
    assert callable(function)
    return str(inspect.signature(function)).replace("'", "")


def _returned(function: object) -> str:
    assert callable(function)
    return str(inspect.signature(function).return_annotation)


if __name__ == "__main__":
    print("\n".join(signatures()))
