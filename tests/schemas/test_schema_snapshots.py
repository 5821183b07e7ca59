"""The JSON schemas of the records as they were last looked at: a stored file's form changes only where one sees it."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path

import schemas as package
from flows.inspect.schema import RECORDS, schemas
from schemas.base import Record

NEVER_STORED = {"ListsSettings", "ReferenceCurve", "ReferenceRun", "_Falling", "_Searched", "Section", "StageKey"}
SNAPSHOTS = Path(__file__).parents[1] / "schema_snapshots"
COMMAND = "sdsearch schema --out tests/schema_snapshots"


def test_the_records_are_as_the_snapshots_say() -> None:
    stored = {path.name.removesuffix(".schema.json"): path for path in SNAPSHOTS.iterdir()}
    current = schemas()
    assert stored.keys() == current.keys(), f"a record came or went: run `{COMMAND}`, and delete what is no record"
    changed = [name for name, path in stored.items() if json.loads(path.read_text(encoding="utf-8")) != current[name]]
    assert not changed, f"{', '.join(changed)} changed: if that is meant, run `{COMMAND}` and look at the difference"


def test_every_record_is_in_a_snapshot() -> None:
    """What is stored inside another record is in that one's schema."""
    for module in pkgutil.iter_modules(package.__path__, "schemas."):
        importlib.import_module(module.name)
    told = {record.__name__ for record in RECORDS}
    told |= {name for content in schemas().values() for name in content.get("$defs", {})}
    known = {record.__name__ for record in subclasses(Record) if record.__module__.startswith("schemas.")}
    assert known - NEVER_STORED == told


def subclasses(record: type[Record]) -> set[type[Record]]:
    children = set(record.__subclasses__())
    return children.union(*(subclasses(child) for child in children))
