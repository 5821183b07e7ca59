"""What a workspace holds, times and pids aside, and where two of them differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from storage.database.connection import Database
from storage.database.tables import table_schemas
from storage.disk.files import is_temporary, sha256_file
from storage.workspace import Workspace

# What of a stage was searched at which attempt is a circumstance; which index, is not.
_OF_SEARCHES = {"seconds", "num_queries", "num_cached", "cache_hit_share", "num_retries", "retried"}
# These tell when, where and at which attempt work was done, and how often a server was asked: a killed run has other
# ones.
_OF_TIME = {"started_at", "finished_at", "created_at", "updated_at", "duration_s"}
_CIRCUMSTANCES = {*_OF_TIME, "host", "pid", "attempt", "num_retries"}
_NOT_COMPARED = {"locks", "logs"}
Snapshot = dict[str, Any]


def snapshot(root: Path) -> Snapshot:
    """Return every file's hash (JSON files: their values) and every table's rows, by name."""
    return {**_files(root), **tables(root)}


def differences(found: Snapshot, expected: Snapshot) -> list[str]:
    """Return a line for each file or table that is not as expected."""
    lines = [f"{name} is missing" for name in expected if name not in found]
    lines += [f"{name} should not be there" for name in found if name not in expected]
    common = [name for name in expected if name in found]
    lines += [
        f"{name} differs{_where(found[name], expected[name])}" for name in common if found[name] != expected[name]
    ]
    return sorted(lines)


def _files(root: Path) -> Snapshot:
    found: Snapshot = {}
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        # The database's own bytes depend on the order of its transactions; its tables are compared instead.
        if not path.is_file() or parts[0] in _NOT_COMPARED or parts[0].startswith("sdsearch.duckdb"):
            continue
        name = "a temporary file" if any(is_temporary(part) for part in (path, *path.parents)) else path.name
        found[f"{name}: {'/'.join(parts)}"] = _json(path) if path.name in ("stage.json", "run.json") else _hash(path)
    return found


def _hash(path: Path) -> str:
    return sha256_file(path)


def _json(path: Path) -> Any:
    content = json.loads(path.read_text(encoding="utf-8"))
    # The history of attempts is what a kill changes; the one that is done counts.
    attempts = content.get("attempts", [content])
    return [_without_circumstances(attempt) for attempt in attempts if attempt["status"] == "done"]


def tables(root: Path) -> Snapshot:
    """Return every table's rows, by name; of the ledger those of the attempts that did a stage."""
    database = Database(Workspace(root))
    found: Snapshot = {}
    for name in sorted(set(table_schemas()) - {"workspace"}):
        condition = " WHERE status = 'done'" if name == "stages" else ""
        rows = database.query(f'SELECT * FROM "{name}"{condition}').to_pylist()
        found[f"table {name}"] = sorted((_without_circumstances(row) for row in rows), key=repr)
    return found


def _without_circumstances(row: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in row.items() if k not in _CIRCUMSTANCES and not k.endswith("duration_s")}
    if kept.get("retrieval"):
        kept["retrieval"] = {k: v for k, v in kept["retrieval"].items() if k not in _OF_SEARCHES}
    return kept


def _where(found: Any, expected: Any) -> str:
    if isinstance(found, list):
        wrong = [row for row in found if row not in expected]
        lacking = [row for row in expected if row not in found]
        example = f"; such as {str((wrong or lacking)[0])[:300]}" if wrong or lacking else ""
        return f": {len(found)} rows, expected {len(expected)}; {len(wrong)} other, {len(lacking)} lacking{example}"
    if isinstance(found, dict):
        return f": { ({k: (v, expected.get(k)) for k, v in found.items() if v != expected.get(k)})!s:.300}"
    return ""
