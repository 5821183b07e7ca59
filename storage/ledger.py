"""The ledger: which stage of which iteration is done, with what, and where its files are.

A stage's files are durable first, then its rows, its ledger row and the run's row enter the database in one
transaction. So a stage is either done with all its rows, or it runs again.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import duckdb

from schemas.base import hash_json, nearest_name
from schemas.ledger import ArtifactRef, RunRecord, StageKey, StageRecord
from storage.artifacts import ArtifactStore
from storage.database import Database, insert, insert_new
from storage.errors import DamagedArtifactError, RunExistsError, RunNotFoundError
from storage.files import write_json_atomic
from storage.tables import SHARED_TABLES, STAGE_TABLES, Rows
from storage.workspace import validate_run_name

logger = logging.getLogger(__name__)
_OF_STAGE = "run = $run AND iteration = $iteration AND stage = $stage"


class Ledger:
    """Reads and writes the rows of `runs` and `stages`."""

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database = database
        self._artifacts = artifacts

    def create_run(self, record: RunRecord) -> None:
        """Add a run; RunExistsError when its name is taken."""
        validate_run_name(record.run)
        with self._database.transaction() as connection:
            if _count_runs(connection, record.run):
                raise RunExistsError(
                    f"run '{record.run}' is in this workspace already; continue it with resume, or choose another "
                    "name with --run"
                )
            self._write_run_file(record)
            _insert_record(connection, "runs", record)

    def get_run(self, run: str) -> RunRecord:
        """Return a run's record; RunNotFoundError, with the nearest name, when there is none."""
        table = self._database.query("SELECT * FROM runs WHERE run = $run", {"run": run})
        if table.num_rows:
            return RunRecord.model_validate(_with_zones(table.to_pylist()[0]))
        names = [record.run for record in self.list_runs()]
        near = nearest_name(run, names)
        hint = f"did you mean '{near}'?" if near else f"it has: {', '.join(names) or 'none'}"
        raise RunNotFoundError(f"no run '{run}' in this workspace; {hint}")

    def list_runs(self) -> list[RunRecord]:
        """Return all runs, oldest first."""
        table = self._database.query("SELECT * FROM runs ORDER BY created_at, run")
        return [RunRecord.model_validate(_with_zones(row)) for row in table.to_pylist()]

    def update_run(self, record: RunRecord) -> None:
        """Replace a run's record; RunNotFoundError when there is none of its name."""
        with self._database.transaction() as connection:
            self._replace_run(connection, record)

    def stages(self, run: str) -> list[StageRecord]:
        """Return every attempt of a run's stages, in the order in which they started."""
        table = self._database.query("SELECT * FROM stages WHERE run = $run ORDER BY started_at, attempt", {"run": run})
        return [StageRecord.model_validate(_with_zones(row)) for row in table.to_pylist()]

    def begin(self, key: StageKey, input_hash: str, seed: int) -> StageRecord:
        """Record that a new attempt at a stage runs in this process, and return its row.

        The caller holds the run's lock, so an earlier attempt that still counts as running has died: it becomes
        interrupted.
        """
        validate_run_name(key.run)
        with self._database.transaction() as connection:
            connection.execute(
                f"UPDATE stages SET status = 'interrupted', error = 'the process died' "
                f"WHERE {_OF_STAGE} AND status = 'running'",
                key.model_dump(),
            )
            # fetchall, not fetchone: a result that is not read to its end blocks the connection.
            (last,) = connection.execute(
                f"SELECT coalesce(max(attempt), 0) FROM stages WHERE {_OF_STAGE}", key.model_dump()
            ).fetchall()
            record = _running(key, last[0] + 1, input_hash, seed)
            _insert_record(connection, "stages", record)
        return record

    def find_done(self, key: StageKey, input_hash: str) -> StageRecord | None:
        """Return the attempt that did this stage with these inputs and whose files verify, None when there is none.

        A file that is missing or damaged makes the attempt stale, with a warning in the log.
        """
        table = self._database.query(
            f"SELECT * FROM stages WHERE {_OF_STAGE} AND status = 'done' AND input_hash = $input_hash "
            "ORDER BY attempt DESC LIMIT 1",
            {**key.model_dump(), "input_hash": input_hash},
        )
        if not table.num_rows:
            return None
        record = StageRecord.model_validate(_with_zones(table.to_pylist()[0]))
        try:
            for output in record.outputs:
                self._artifacts.verify(output)
        except DamagedArtifactError as error:
            logger.warning("%s of iteration %d will run again: %s", key.stage, key.iteration, error)
            self._mark_stale(record, str(error))
            return None
        return record

    def commit(self, record: StageRecord, rows: Rows, run_update: RunRecord | None = None) -> None:
        """Make a done attempt the stage's truth: its file `stage.json`, then rows, ledger and run in one transaction.

        Rows of the stage's tables from earlier attempts at this iteration go; so does an earlier attempt's claim
        to be done. ValueError for rows of a table that is not the stage's.
        """
        assert record.status == "done", f"commit takes a done record, not {record.status}"
        owned, shared = STAGE_TABLES[record.stage], SHARED_TABLES.get(record.stage, ())
        foreign = sorted(set(rows) - {*owned, *shared})
        if foreign:
            raise ValueError(f"stage {record.stage} writes {', '.join((*owned, *shared))}, not {', '.join(foreign)}")
        key = StageKey(run=record.run, iteration=record.iteration, stage=record.stage)
        folder = self._artifacts.workspace.stage_folder(key)
        write_json_atomic(folder / "stage.json", record.model_dump(mode="json"), self._artifacts.workspace.root)
        with self._database.transaction() as connection:
            _replace_rows(connection, key, owned, rows)
            for table_name in shared:
                if table_name in rows:
                    insert_new(connection, table_name, rows[table_name])
            connection.execute(
                f"UPDATE stages SET status = 'stale' WHERE {_OF_STAGE} AND status = 'done'", key.model_dump()
            )
            _replace_attempt(connection, record)
            if run_update is not None:
                self._replace_run(connection, run_update)

    def fail(self, record: StageRecord, error: str, status: Literal["failed", "interrupted"] = "failed") -> StageRecord:
        """Record how a running attempt ended without being done, and return its row."""
        finished_at = datetime.now(UTC)
        changes = {
            "status": status,
            "error": error,
            "finished_at": finished_at,
            "duration_s": _seconds_between(record.started_at, finished_at),
        }
        failed = record.model_copy(update=changes)
        with self._database.transaction() as connection:
            _replace_attempt(connection, failed)
        return failed

    def _mark_stale(self, record: StageRecord, error: str) -> None:
        with self._database.transaction() as connection:
            _replace_attempt(connection, record.model_copy(update={"status": "stale", "error": error}))

    def _replace_run(self, connection: duckdb.DuckDBPyConnection, record: RunRecord) -> None:
        if not _count_runs(connection, record.run):
            raise RunNotFoundError(f"no run '{record.run}' in this workspace; start it with train")
        self._write_run_file(record)
        connection.execute("DELETE FROM runs WHERE run = ?", [record.run])
        _insert_record(connection, "runs", record)

    def _write_run_file(self, record: RunRecord) -> None:
        workspace = self._artifacts.workspace
        path = workspace.run_folder(record.run) / "run.json"
        write_json_atomic(path, record.model_dump(mode="json"), workspace.root)


def finish(record: StageRecord, outputs: Sequence[ArtifactRef], rows: Rows) -> StageRecord:
    """Return a running attempt's record as done now, with these files and rows.

    The output hash covers the names and contents of the files, not the run's name, so that equal work in two runs
    gives equal hashes.
    """
    finished_at = datetime.now(UTC)
    named = sorted([output.path.rpartition("/")[2], output.sha256] for output in outputs)
    changes = {
        "status": "done",
        "outputs": tuple(outputs),
        "output_hash": hash_json(named),
        "num_rows": sum(table.num_rows for table in rows.values()),
        "finished_at": finished_at,
        "duration_s": _seconds_between(record.started_at, finished_at),
    }
    return record.model_copy(update=changes)


def _running(key: StageKey, attempt: int, input_hash: str, seed: int) -> StageRecord:
    return StageRecord(
        **key.model_dump(),
        attempt=attempt,
        status="running",
        input_hash=input_hash,
        output_hash="",
        outputs=(),
        num_rows=0,
        seed=seed,
        host=socket.gethostname(),
        pid=os.getpid(),
        started_at=datetime.now(UTC),
        finished_at=None,
        duration_s=0.0,
        error="",
        adopted_from=None,
    )


def _seconds_between(start: datetime, end: datetime) -> float:
    """Clamped, since a clock may have been set back in between."""
    return max((end - start).total_seconds(), 0.0)


def _count_runs(connection: duckdb.DuckDBPyConnection, run: str) -> int:
    (row,) = connection.execute("SELECT count(*) FROM runs WHERE run = ?", [run]).fetchall()
    return int(row[0])


def _replace_rows(connection: duckdb.DuckDBPyConnection, key: StageKey, table_names: Sequence[str], rows: Rows) -> None:
    for table_name in table_names:
        connection.execute(f'DELETE FROM "{table_name}" WHERE run = ? AND iteration = ?', [key.run, key.iteration])
        if table_name in rows:
            insert(connection, table_name, rows[table_name])


def _replace_attempt(connection: duckdb.DuckDBPyConnection, record: StageRecord) -> None:
    key = record.model_dump(include={"run", "iteration", "stage", "attempt"})
    connection.execute(f"DELETE FROM stages WHERE {_OF_STAGE} AND attempt = $attempt", key)
    _insert_record(connection, "stages", record)


def _insert_record(connection: duckdb.DuckDBPyConnection, table_name: str, record: RunRecord | StageRecord) -> None:
    """Insert one record; the tables hold times as UTC without a zone."""
    row = _without_zones(record.model_dump())
    values = ", ".join(f"${name}" for name in row)
    connection.execute(f"INSERT INTO {table_name} ({', '.join(row)}) VALUES ({values})", row)


def _without_zones(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.astimezone(UTC).replace(tzinfo=None) if isinstance(value, datetime) else value
        for name, value in row.items()
    }


def _with_zones(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value.replace(tzinfo=UTC) if isinstance(value, datetime) else value for name, value in row.items()}
