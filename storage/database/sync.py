"""The index: brings what the files hold into DuckDB, when the database can be had.

The rows of a stage are a function of its files (`RowsOf`), and stand in the database exactly while an attempt of the
stage is done; its ledger rows are the attempts of `stage.json` that have ended. Both change in one transaction. What
could not be written, because another process keeps the database open or this one died, is found by comparing and is
made up: at the next chance, when the run ends, when it is resumed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice

import duckdb
import pyarrow as pa

from schemas.commands import command
from schemas.records.ledger import RunRecord, StageKey, StageRecord
from storage.database.connection import Database
from storage.database.ledger_rows import run_of, run_rows, stage_of, stage_rows, warning_rows
from storage.database.rows import SHARED_TABLES, STAGE_TABLES, StageRows
from storage.database.tables import insert, insert_new
from storage.errors import (
    DamagedArtifactError,
    DatabaseBusyError,
    DatabaseUnusableError,
    RecordMismatchError,
    StorageError,
)
from storage.runs.ledger import Ledger

logger = logging.getLogger(__name__)
RowsOf = Callable[[StageRecord], StageRows]
"""Makes a done stage's rows from its files; DamagedArtifactError when they cannot be read."""

WAIT_S = 1.0  # A reader's query is over by then; one that stays must not hold up the training.
FLUSH_EVERY_S = 5.0
_BATCH = 32  # Stages a transaction.


class DatabaseSync:
    """Keeps the database in step with the files of the runs that this process works on."""

    def __init__(self, database: Database, ledger: Ledger, rows_of: RowsOf) -> None:
        self._database = database
        self._ledger = ledger
        self._rows_of = rows_of
        self._stages: dict[StageKey, StageRows | None] = {}  # None: rows are read from the files when they are written.
        self._runs: dict[str, None] = {}
        self._unchecked: dict[str, None] = {}
        self._flushed_at = time.monotonic()
        self._is_behind = False
        self.left_out: dict[StageKey, str] = {}
        """Stages whose rows could not be made, and why."""

    def put_run(self, run: str) -> None:
        """Note that a run's record changed."""
        self._runs[run] = None

    def put_stage(self, key: StageKey, rows: StageRows | None = None) -> None:
        """Note that a stage's attempts changed, `rows` being those of the done one; write when some seconds are due.

        ValueError for rows of a table that is not the stage's.
        """
        owned, shared = STAGE_TABLES[key.stage], SHARED_TABLES.get(key.stage, ())
        foreign = sorted(set(rows or ()) - {*owned, *shared})
        if foreign:
            raise ValueError(f"stage {key.stage} writes {', '.join((*owned, *shared))}, not {', '.join(foreign)}")
        self._stages[key] = rows
        if time.monotonic() - self._flushed_at >= FLUSH_EVERY_S:
            self.flush()

    def find_run(self, run: str) -> RunRecord | None:
        """Return a run's record as the database has it, None when it has none or cannot be had."""
        try:
            rows = self._database.query("SELECT * FROM runs WHERE run = $run", {"run": run}).to_pylist()
        except (DatabaseBusyError, DatabaseUnusableError) as error:
            logger.warning("%s", error)
            return None
        return run_of(rows[0]) if rows else None

    def catch_up(self, run: str) -> bool:
        """Compare the files of a run with the database and write what differs; False when another process keeps it.

        Raises DatabaseUnusableError for a database that is damaged: nothing is begun on one.
        """
        self._unchecked[run] = None
        return self._try_to_write(WAIT_S, DatabaseBusyError)

    def flush(self, wait_s: float = WAIT_S) -> bool:
        """Write all that is noted; False, after a warning, when the database cannot be had: it will be tried again."""
        # One that did not leave within the first wait is not waited for again until the run ends.
        return self._try_to_write(0.0 if self._is_behind else wait_s, DatabaseBusyError, DatabaseUnusableError)

    def settle(self, run: str) -> bool:
        """Catch up with a run that ends, waiting for the database until its deadline, and fold the log into the file.

        False, after a warning that names the way out, when the database cannot be had.
        """
        self._unchecked[run] = None
        self._is_behind = False
        if not self.flush(self._database.deadline_s):
            rebuilding = command("db", "rebuild", workspace=self._database.path.parent)
            logger.warning("the database lacks rows of run '%s'; they enter it with: %s", run, rebuilding)
            return False
        with suppress(DatabaseBusyError, DatabaseUnusableError):  # The log is read with the file, wherever it lies.
            self._database.checkpoint(WAIT_S)
        return True

    def differing(self, run: str, wait_s: float | None = None) -> list[StageKey]:
        """Return the stages of a run whose ledger rows are not what the files say."""
        table = self._database.query("SELECT * FROM stages WHERE run = $run ORDER BY attempt", {"run": run}, wait_s)
        indexed: dict[StageKey, tuple[StageRecord, ...]] = {}
        for row in table.to_pylist():
            record = stage_of(row)
            indexed[record.key] = (*indexed.get(record.key, ()), record)
        wanted = {key: history.ended for key, history in self._ledger.histories(run)}
        return [key for key in {**wanted, **indexed} if wanted.get(key, ()) != indexed.get(key, ())]

    def _try_to_write(self, wait_s: float, *borne: type[StorageError]) -> bool:
        """Write all that is noted; an error of a `borne` kind is told once, and the rows stay noted."""
        try:
            self._write_all(wait_s)
        except borne as error:
            self._stages = dict.fromkeys(self._stages)  # Their rows would pile up in memory.
            if not self._is_behind:
                logger.warning("the run continues, its rows enter the database later: %s", error)
            self._is_behind = True
            return False
        finally:
            self._flushed_at = time.monotonic()
        self._is_behind = False
        return True

    def _write_all(self, wait_s: float) -> None:
        for run in list(self._unchecked):
            self._stages |= {key: self._stages.get(key) for key in self.differing(run, wait_s)}
            self._runs[run] = None
            del self._unchecked[run]
        while self._stages or self._runs:
            batch = dict(islice(self._stages.items(), _BATCH))
            changes = [change for key, rows in batch.items() if (change := self._change(key, rows))]
            runs = [self._ledger.get_run(run) for run in self._runs]
            with self._database.transaction(wait_s) as connection:
                _put_stages(connection, changes)
                _put_runs(connection, runs)
            self._runs.clear()
            for key in batch:
                del self._stages[key]

    def _change(
        self, key: StageKey, rows: StageRows | None
    ) -> tuple[StageKey, Sequence[StageRecord], StageRows] | None:
        history = self._ledger.history(key)
        if rows is None and history.done is not None:
            try:
                rows = self._rows_of(history.done)
            except (DamagedArtifactError, RecordMismatchError) as error:
                self.left_out[key] = f"{key.stage} of iteration {key.iteration} of run '{key.run}': {error}"
                logger.warning("left out of the database: %s", self.left_out[key])
                return None
        return key, history.ended, rows or {}


def count_rows(record: StageRecord, rows: StageRows) -> int:
    """Return how many of the rows lie in the stage's own tables."""
    return sum(rows[name].num_rows for name in STAGE_TABLES[record.stage] if name in rows)


def _put_stages(
    connection: duckdb.DuckDBPyConnection, changes: Sequence[tuple[StageKey, Sequence[StageRecord], StageRows]]
) -> None:
    """Replace the ledger rows and the rows of each stage; tables are filled one after another, each at once."""
    for key in _present(connection, [key for key, _, _ in changes]):
        where = [key.run, key.iteration]
        for name in STAGE_TABLES[key.stage]:
            connection.execute(f'DELETE FROM "{name}" WHERE run = ? AND iteration = ?', where)
        connection.execute("DELETE FROM stages WHERE run = ? AND iteration = ? AND stage = ?", [*where, key.stage])
    shared = {name for names in SHARED_TABLES.values() for name in names}
    parts: dict[str, list[pa.Table]] = {"stages": [stage_rows(attempts) for _, attempts, _ in changes]}
    for _, _, rows in changes:
        for name, table in rows.items():
            parts.setdefault(name, []).append(table)
    for name, tables in parts.items():
        whole = pa.concat_tables(tables) if tables else None
        if whole is not None and whole.num_rows:
            (insert_new if name in shared else insert)(connection, name, whole)


def _present(connection: duckdb.DuckDBPyConnection, keys: Sequence[StageKey]) -> list[StageKey]:
    """Return those of the stages that have rows: most have none, and deletes cost more than looking."""
    found: set[tuple[str, int, str]] = set()
    for run in {key.run for key in keys}:
        rows = connection.execute("SELECT DISTINCT run, iteration, stage FROM stages WHERE run = ?", [run]).fetchall()
        found |= {(name, iteration, stage) for name, iteration, stage in rows}
    return [key for key in keys if (key.run, key.iteration, key.stage) in found]


def _put_runs(connection: duckdb.DuckDBPyConnection, records: Iterable[RunRecord]) -> None:
    for record in records:
        connection.execute("DELETE FROM runs WHERE run = ?", [record.run])
        connection.execute("DELETE FROM warnings WHERE run = ?", [record.run])
        insert(connection, "runs", run_rows(record))
        insert(connection, "warnings", warning_rows(record))
