"""Pages to read, made from what they tell of: the records and the database's tables."""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flows.inspect.schema import RECORDS
from schemas.base import Record
from schemas.settings.root import Settings
from storage.database.tables import TableDescription, describe_tables

_RECORDS_HEADING: Final = """# Records

Made by `sdsearch schema --records`; do not edit. What crosses a stage boundary, what is stored, and what
`sdsearch ask --json` prints, field by field. A stage's records are the rows of its parquet files; `run.json`,
`stage.json` and the others hold one record each. JSON schemas of all of them: `sdsearch schema --out FOLDER`. The
[settings](settings.md) have a page of their own, the [tables](tables.md) are made from these records.
"""

_TABLES_HEADING: Final = """# Tables and views

Made by `sdsearch schema --tables`; do not edit. What `sdsearch sql` reads. A table's rows are made from the files of
the stages; a view (`v_…`) is computed from tables when it is read. Metrics are columns of `iteration_metrics`,
`update_metrics` and `evaluations`; `v_iterations` has them all, a row an iteration. The database says the same of
itself: `SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'rollouts'`.
"""


def records_reference() -> str:
    """Return the stored records as Markdown: a table a record, with the records that lie in it."""
    return "\n".join([_RECORDS_HEADING, *(_record(record) for record in _with_inner(RECORDS))])


def tables_reference() -> str:
    """Return the database's tables and views as Markdown."""
    tables = describe_tables()
    contents = "".join(f"- [`{table.name}`](#{table.name}): {table.comment}\n" for table in tables)
    return "\n".join([_TABLES_HEADING, contents, *map(_table, tables)])


def _table(table: TableDescription) -> str:
    key = f" Key: {', '.join(f'`{name}`' for name in table.key)}." if table.key else ""
    rows = [(f"`{column.name}`", f"`{column.type}`", column.comment) for column in table.columns]
    return f"## {table.name}\n\n{table.comment}{key}\n\n{_markdown(('column', 'type', 'meaning'), rows)}"


def _record(record: type[BaseModel]) -> str:
    rows = [_field(name, field) for name, field in record.model_fields.items()]
    text = " ".join((record.__doc__ or "").split())
    return f"## {record.__name__}\n\n{text}\n\n{_markdown(('field', 'type', 'default', 'meaning'), rows)}"


def _default(value: Any) -> str:
    return "its own defaults" if isinstance(value, Record) else f"`{json.dumps(value)}`"


def _field(name: str, field: FieldInfo) -> tuple[str, str, str, str]:
    default = "needed" if field.is_required() else _default(field.default)
    return f"`{name}`", f"`{type_name(field.annotation)}`", default, field.description or ""


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _with_inner(records: Iterable[type[BaseModel]]) -> list[type[BaseModel]]:
    """Return the records, each followed by those that first lie in it; the settings have a page of their own."""
    seen: dict[type[BaseModel], None] = {}

    def visit(record: type[BaseModel]) -> None:
        if record in seen or record is Settings:
            return
        seen[record] = None
        for field in record.model_fields.values():
            for inner in _inner(field.annotation):
                visit(inner)

    for record in records:
        visit(record)
    return list(seen)


def _inner(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, Record):
        yield annotation
    for argument in get_args(annotation):
        yield from _inner(argument)


def type_name(annotation: Any) -> str:
    """Return an annotation as Python writes it, without modules and constraints."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return " | ".join(json.dumps(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_name, arguments))
    if origin is not None:
        inner = ", ".join("..." if argument is Ellipsis else type_name(argument) for argument in arguments)
        return f"{origin.__name__}[{inner}]"
    return "None" if annotation is type(None) else str(annotation.__name__)
