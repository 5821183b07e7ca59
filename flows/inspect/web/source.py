"""What the pages show, read from a workspace: its files for what runs are, its database for what they measured.

Nothing is written, and a page opens the database once, for milliseconds: training never waits for a reader.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from schemas.commands import command
from schemas.errors import UserError
from schemas.records.ledger import RunRecord
from storage.database.connection import Database
from storage.errors import DatabaseBusyError, StorageError
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.workspace import Workspace

_WAIT_S = 2.0
Row = dict[str, Any]


class NotThereError(UserError):
    """A page of a run, an iteration, a group or a rollout that the workspace does not have."""


class Rows:
    """One short read-only connection to the workspace's database."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def all(self, sql: str, **parameters: object) -> list[Row]:
        """Return a query's rows by column name; `parameters` fill `$name` in the SQL."""
        relation = self._connection.execute(sql, parameters)
        names = [column[0] for column in relation.description]
        return [dict(zip(names, row, strict=True)) for row in relation.fetchall()]

    def one(self, missing: str, sql: str, **parameters: object) -> Row:
        """Return a query's only row; NotThereError says `missing` when there is none."""
        found = self.all(sql, **parameters)
        if not found:
            raise NotThereError(missing)
        return found[0]


class Source:
    """A workspace as the pages read it."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.ledger = Ledger(ArtifactStore(workspace))
        self.iterations: dict[str, dict[int, tuple[str, Row]]] = {}
        """What is remembered of each run's iterations: a stamp of their stages, and their figures."""
        self._database = Database(workspace, _WAIT_S)

    def runs(self) -> list[RunRecord]:
        """Return the records of all runs, newest first."""
        return sorted(self.ledger.list_runs(), key=lambda record: record.created_at, reverse=True)

    def run(self, name: str) -> RunRecord:
        """Return a run's record; NotThereError when the workspace has none of the name."""
        try:
            return self.ledger.get_run(name)
        except StorageError as error:
            raise NotThereError(str(error)) from error

    @contextmanager
    def rows(self) -> Iterator[Rows]:
        """Give a read-only connection for one page; StorageError says what is the matter and what to do."""
        if not self.workspace.database.exists():
            raise NotThereError(
                f"{self.workspace.database} is not there: a first run makes it when its first stages have ended, and "
                f"it can be made from the files with: "
                f"{command('db', 'rebuild', workspace=self.workspace.root)}"
            )
        try:
            with self._database.read(_WAIT_S) as connection:
                yield Rows(connection)
        except DatabaseBusyError as error:
            raise DatabaseBusyError(f"{error}; this page tries again automatically") from error
