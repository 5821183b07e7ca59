"""Queries that ship with the program, by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from schemas.base import nearest_name
from storage.errors import QueryError

_PARAMETER = re.compile(r"\$([a-z_]+)")


@dataclass(frozen=True)
class CannedQuery:
    """One shipped query; `parameters` are the names that its SQL holds as `$name`.

    Every one is asked of one run, $run: ids of rollouts and groups are equal in all runs.
    """

    name: str
    description: str
    sql: str
    parameters: tuple[str, ...]

    @property
    def of_replays(self) -> bool:
        """True when $run is a replay, of which only the view `v_replays` has rows."""
        return "v_replays" in self.sql


@cache
def list_canned() -> tuple[CannedQuery, ...]:
    """Return the shipped queries, ordered by name."""
    scripts = [item for item in (files("storage.database") / "queries").iterdir() if item.name.endswith(".sql")]
    queries = [_parse(item.name.removesuffix(".sql"), item.read_text(encoding="utf-8")) for item in scripts]
    return tuple(sorted(queries, key=lambda query: query.name))


def load_canned(name: str) -> CannedQuery:
    """Return the query of this name; QueryError, with the nearest name, when there is none."""
    by_name = {query.name: query for query in list_canned()}
    if name in by_name:
        return by_name[name]
    near = nearest_name(name, list(by_name))
    hint = f"did you mean '{near}'?" if near else f"there are: {', '.join(by_name)}"
    raise QueryError(f"no canned query '{name}'; {hint}")


def _parse(name: str, text: str) -> CannedQuery:
    first, _, sql = text.partition("\n")
    assert first.startswith("-- "), f"{name}.sql: the first line describes the query"
    return CannedQuery(name, first.removeprefix("-- "), sql.strip(), tuple(dict.fromkeys(_PARAMETER.findall(sql))))
