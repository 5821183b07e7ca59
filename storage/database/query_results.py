"""The rows of a query as people read them: each column by its place, each value as DuckDB itself writes it.

Python's own types hold neither a date after the year 9999 or before Christ, nor an interval of months, nor nanoseconds;
so DuckDB turns into text whatever is no plain number, text or truth value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import duckdb

from storage.disk.signals import handler_errors_kept
from storage.errors import QueryError

# values: numbers, texts and truth values as Python's, all else as text. text: everything as text, nested values as
# JSON. json: everything as JSON.
Form = Literal["values", "text", "json"]

_NUMBERS = ("tinyint", "smallint", "integer", "bigint", "hugeint", "float", "double")
_PLAIN = {"boolean", "varchar", *_NUMBERS, *(f"u{name}" for name in _NUMBERS[:5])}
_NESTED = {"list", "array", "struct", "map"}
# A string of JSON, which stays, or a number that JSON does not know.
_NOT_FINITE = re.compile(r'("(?:[^"\\]|\\.)*")|-?\b(?:NaN|Infinity)\b')
_EXCERPT = re.compile(r"\n\s*LINE (?P<line>\d+): .*", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """The rows of a query, in its order; `names` may be equal, `keys` are the same names made unique.

    keys: as `COPY … TO 'file.json'` of DuckDB makes them: a, a_1, a_2.
    """

    names: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()

    def records(self) -> list[dict[str, Any]]:
        """Return each row by its unique names."""
        return [dict(zip(self.keys, row, strict=True)) for row in self.rows]


def answer_of(relation: duckdb.DuckDBPyRelation | None, form: Form) -> Answer:
    """Return a relation's rows in a form; no rows for a statement that gives none."""
    if relation is None:
        return Answer()
    columns = (_expression(location, kind.id, form) for location, kind in enumerate(relation.types, 1))
    rows = relation.project(", ".join(columns)).fetchall()
    keys = relation.project("*").columns
    if form == "json":
        rows = [tuple(_finite(text or "null") for text in row) for row in rows]
    elif form == "text":
        nested = [kind.id in _NESTED for kind in relation.types]
        rows = [tuple(_finite(v) if v and deep else v for v, deep in zip(row, nested, strict=True)) for row in rows]
    return Answer(tuple(relation.columns), tuple(keys), tuple(rows))


def json_line(keys: tuple[str, ...], texts: tuple[str, ...]) -> str:
    """Return a row of form json as one object, compact as DuckDB writes it."""
    names = (json.dumps(key, ensure_ascii=False) for key in keys)
    return "{" + ",".join(f"{name}:{text}" for name, text in zip(names, texts, strict=True)) + "}"


@handler_errors_kept()
def parameters_of(sql: str) -> frozenset[str]:
    """Return the names that a query holds as `$name`; QueryError when it is no SQL or more than one statement."""
    try:
        sql.encode()
        with duckdb.connect() as connection:
            statements = connection.extract_statements(sql)
    except (duckdb.Error, UnicodeEncodeError) as error:
        raise query_error(error) from error
    if len(statements) > 1:
        raise QueryError(f"the query does not run: it holds {len(statements)} statements; give one at a time")
    return frozenset(name for statement in statements for name in statement.named_parameters)


def check_parameters(needed: frozenset[str], values: Mapping[str, Any]) -> None:
    """Raise QueryError unless the values are those that the query asks for."""
    missing, foreign = sorted(needed - values.keys()), sorted(values.keys() - needed)
    if missing:
        raise QueryError(f"the query needs ${missing[0]}; give it with --param {missing[0]}=VALUE")
    if foreign:
        known = ", ".join(f"${name}" for name in sorted(needed)) or "no parameter"
        raise QueryError(f"the query has no ${foreign[0]} (it has: {known}); leave --param {foreign[0]} out")


def query_error(error: Exception) -> QueryError:
    """Return DuckDB's message as one line; its excerpt of the query is cut to the number of the line."""
    text = str(error)
    excerpt = _EXCERPT.search(text)
    where = f" (line {excerpt['line']})" if excerpt and excerpt["line"] != "1" else ""
    return QueryError(f"the query does not run: {' '.join(_EXCERPT.sub('', text).split())}{where}")


def _expression(location: int, kind: str, form: Form) -> str:
    if form == "json" or (form == "text" and kind in _NESTED):
        return f"CAST(to_json(#{location}) AS VARCHAR)"
    return f"#{location}" if form == "values" and kind in _PLAIN else f"CAST(#{location} AS VARCHAR)"


def _finite(text: str) -> str:
    """Return JSON with null for NaN and the infinities, which JSON has no words for and other programs refuse."""
    if "NaN" not in text and "Infinity" not in text:
        return text
    return _NOT_FINITE.sub(lambda found: found[1] or "null", text)
