"""The database's tables and views: made from the SQL in `ddl/`, and filled from Arrow."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import duckdb
import pyarrow as pa

from storage.database.comments import add_comments
from storage.disk.signals import handler_errors_kept

_CREATE_TABLE = re.compile(r"^CREATE TABLE .*?^\)", re.MULTILINE | re.DOTALL)


def create_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Make every table and view, each with its comments, in the connection's current database."""
    connection.execute(ddl())
    add_comments(connection)


def insert(connection: duckdb.DuckDBPyConnection, table_name: str, rows: pa.Table) -> None:
    """Insert Arrow rows by column name; `table_name` comes from the code, never from a person."""
    _insert(connection, "INSERT", table_name, rows)


def insert_new(connection: duckdb.DuckDBPyConnection, table_name: str, rows: pa.Table) -> None:
    """Insert the Arrow rows whose key is not there yet."""
    _insert(connection, "INSERT OR IGNORE", table_name, rows)


@cache
@handler_errors_kept()
def table_schemas() -> dict[str, pa.Schema]:
    """Return the Arrow schema of every table, read off the DDL, so that rows are built with the exact types."""
    with closing(duckdb.connect()) as connection:
        # Views and comments take five times as long, and every process pays for this.
        connection.execute(";".join(_CREATE_TABLE.findall(ddl())))
        names = [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        return {name: connection.sql(f'SELECT * FROM "{name}" LIMIT 0').to_arrow_table().schema for name in names}


@cache
def ddl() -> str:
    """Return the SQL that makes every table and view; `add_comments` says the rest of what they hold."""
    folder = files("storage.database") / "ddl"
    scripts = sorted((item for item in folder.iterdir() if item.name.endswith(".sql")), key=lambda item: item.name)
    return "\n".join(script.read_text(encoding="utf-8") for script in scripts)


def _insert(connection: duckdb.DuckDBPyConnection, verb: str, table_name: str, rows: pa.Table) -> None:
    assert table_name in table_schemas(), f"no table {table_name}"
    connection.register("incoming_rows", rows)
    connection.execute(f'{verb} INTO "{table_name}" BY NAME SELECT * FROM incoming_rows')
    connection.unregister("incoming_rows")


@dataclass(frozen=True)
class ColumnDescription:
    """A column: its name, DuckDB's type of it, and what it holds."""

    name: str
    type: str
    comment: str


@dataclass(frozen=True)
class TableDescription:
    """A table with its key, or a view, which has none."""

    name: str
    comment: str
    key: tuple[str, ...]
    columns: tuple[ColumnDescription, ...]


def describe_tables() -> list[TableDescription]:
    """Return the tables in the order of the SQL, then the views, as a database of this program says of itself."""
    with closing(duckdb.connect()) as connection:
        create_tables(connection)
        named = connection.execute(
            "SELECT table_name, comment FROM duckdb_tables() WHERE NOT internal ORDER BY table_oid"
        ).fetchall()
        named += connection.execute(
            "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal ORDER BY view_oid"
        ).fetchall()
        keys = dict(
            connection.execute(
                "SELECT table_name, constraint_column_names FROM duckdb_constraints() "
                "WHERE constraint_type = 'PRIMARY KEY'"
            ).fetchall()
        )
        columns = connection.execute(
            "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() WHERE NOT internal "
            "ORDER BY column_index"
        ).fetchall()
    return [
        TableDescription(
            name,
            comment or "",
            tuple(keys.get(name, ())),
            tuple(
                ColumnDescription(column, kind, text or "") for table, column, kind, text in columns if table == name
            ),
        )
        for name, comment in named
    ]
