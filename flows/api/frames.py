"""Rows of the database as pandas data frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from schemas.base import nearest_name
from schemas.commands import command
from schemas.errors import UserError
from storage.storage import Storage
from storage.workspace import open_existing

if TYPE_CHECKING:
    import pandas

_COLUMNS = "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = 'sdsearch' AND NOT internal"
_OF_RUN = "WHERE run = $run"
_OF_ITERATION = "WHERE run = $run AND iteration = $iteration"


def run_sql(storage: Storage, query: str, parameters: Mapping[str, Any]) -> pandas.DataFrame:
    """Return the rows of a query that a person wrote; errors as of `Database.read_only_user_table`."""
    open_existing(storage.workspace.root)
    return storage.database.read_only_user_table(query, parameters).to_pandas()


def read_frame(storage: Storage, table: str, run: str, iteration: int | None) -> pandas.DataFrame:
    """Return the rows that a table or view has of a run, or of one iteration of it, ordered by their first columns.

    Raises UserError for a name that is no table, for a table without runs or iterations, and where the database has
    not caught up with the run's files.
    """
    open_existing(storage.workspace.root)
    columns = _columns(storage)
    names = ["run"] if iteration is None else ["run", "iteration"]
    _check_table(columns, table, names)
    values = dict(zip(names, (run, iteration), strict=False))
    where = _OF_RUN if iteration is None else _OF_ITERATION
    table_name = table  # It is a table or a view of the database by now.
    rows = storage.database.query(f'SELECT * FROM "{table_name}" {where} ORDER BY ALL', values)
    if not rows.num_rows and not storage.database.query(f"SELECT 1 FROM stages {where} LIMIT 1", values).num_rows:
        which = f"run '{run}'" if iteration is None else f"iteration {iteration} of run '{run}'"
        raise UserError(
            f"the database has no rows of {which} yet; a run at work writes them every few seconds, so ask again, or "
            f"put them there from the files with: {command('db', 'rebuild', workspace=storage.workspace.root)}"
        )
    return rows.to_pandas()


def _columns(storage: Storage) -> dict[str, list[str]]:
    """Return the columns of each table and view."""
    found: dict[str, list[str]] = {}
    for row in storage.database.query(_COLUMNS).to_pylist():
        found.setdefault(row["table_name"], []).append(row["column_name"])
    return found


def _check_table(columns: Mapping[str, list[str]], table: str, needed: list[str]) -> None:
    usable = sorted(name for name, own in columns.items() if set(needed) <= set(own))
    if table in usable:
        return
    if table in columns:
        lacks = " and ".join(name for name in needed if name not in columns[table])
        raise UserError(f"{table} has no column {lacks}; ask it with sql(), or choose one of: {', '.join(usable)}")
    near = nearest_name(table, usable)
    hint = f"did you mean '{near}'? There are" if near else "choose one of"
    raise UserError(f"no table or view '{table}' in the database; {hint}: {', '.join(usable)}")
