"""The database follows the files: in one transaction a stage, later when it is kept open, and again after a crash."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from schemas.records.ledger import ArtifactRef, StageKey, StageRecord
from storage.database.connection import Database
from storage.database.rollout_rows import persist_rows
from storage.database.rows import Rows, update_rows
from storage.database.sync import Index, count_rows
from storage.errors import DamagedArtifactError, DatabaseUnusableError
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger, finish
from storage.workspace import Workspace
from tests.support.holding import held_elsewhere
from tests.support.records import contains_golden, make_groups, make_run, make_scores, make_update

PERSIST = StageKey(run="first", iteration=3, stage="persist")
UPDATE = StageKey(run="first", iteration=3, stage="update")
CRASH = """
import os, signal, sys
import storage.database.sync
from storage.workspace import Workspace
from tests.storage.database.test_sync import UPDATE, open_parts

ledger, database, index = open_parts(Workspace.open(sys.argv[1]))
storage.database.sync._put_runs = lambda connection, records: os.kill(os.getpid(), signal.SIGKILL)
ledger.commit(storage.runs.ledger.finish(ledger.begin(UPDATE, "inputs", 1), []))
index.put_stage(UPDATE)
index.flush()
"""


def rows_from_nowhere(record: StageRecord) -> Rows:
    """Stands in for the files: persist and update have the same rows in every iteration but their number."""
    if record.stage == "update":
        return update_rows(record.run, record.iteration, make_update(record.iteration))
    return rows_of_two_groups(record.iteration)


def rows_of_two_groups(iteration: int = 3) -> Rows:
    groups = make_groups(iteration)
    return persist_rows("first", iteration, groups, make_scores(groups), contains_golden)


def open_parts(
    workspace: Workspace, rows_of: Callable[[StageRecord], Rows] = rows_from_nowhere
) -> tuple[Ledger, Database, Index]:
    ledger, database = Ledger(ArtifactStore(workspace)), Database(workspace, deadline_s=20.0)
    return ledger, database, Index(database, ledger, rows_of)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path)


@pytest.fixture
def parts(workspace: Workspace) -> tuple[Ledger, Database, Index]:
    opened = open_parts(workspace)
    opened[0].create_run(make_run())
    return opened


def do_stage(ledger: Ledger, index: Index, key: StageKey, rows: Rows | None = None, inputs: str = "inputs") -> None:
    ledger.commit(finish(ledger.begin(key, inputs, seed=7), []))
    index.put_stage(key, rows)


def ledger_rows(database: Database) -> list[tuple[int, str, int, str]]:
    rows = database.query("SELECT iteration, stage, attempt, status FROM stages ORDER BY ALL").to_pylist()
    return [tuple(row.values()) for row in rows]


def count(database: Database, table_name: str) -> int:
    return database.query(f'SELECT * FROM "{table_name}"').num_rows


def test_a_second_attempt_replaces_its_own_rows_and_no_others(parts: tuple[Ledger, Database, Index]) -> None:
    ledger, database, index = parts
    do_stage(ledger, index, PERSIST, rows_of_two_groups())
    do_stage(ledger, index, PERSIST.model_copy(update={"iteration": 4}), rows_of_two_groups(4))
    do_stage(ledger, index, UPDATE, update_rows("first", 3, make_update()))
    assert index.flush()
    assert count(database, "groups") == 4
    fewer = {name: table.slice(0, 1) for name, table in rows_of_two_groups().items()}
    do_stage(ledger, index, PERSIST, {name: fewer[name] for name in ("groups", "questions")}, inputs="other")
    assert index.flush()
    remaining = database.query("SELECT iteration, count(*) AS n FROM groups GROUP BY iteration ORDER BY iteration")
    assert remaining.to_pylist() == [{"iteration": 3, "n": 1}, {"iteration": 4, "n": 2}]
    assert database.query("SELECT DISTINCT iteration FROM turns").to_pylist() == [{"iteration": 4}]
    assert count(database, "update_metrics") == 2
    assert count(database, "questions") == 2
    assert ledger_rows(database) == [
        (3, "persist", 1, "stale"),
        (3, "persist", 2, "done"),
        (3, "update", 1, "done"),
        (4, "persist", 1, "done"),
    ]


def test_rows_ledger_and_run_enter_together_or_not_at_all(parts: tuple[Ledger, Database, Index]) -> None:
    ledger, database, index = parts
    do_stage(ledger, index, PERSIST)
    assert index.catch_up("first")
    twice = rows_of_two_groups()
    twice["rollouts"] = pa.concat_tables([twice["rollouts"], twice["rollouts"]])
    ledger.update_run(make_run().model_copy(update={"iterations_done": 4}))
    index.put_run("first")
    do_stage(ledger, index, PERSIST, twice, inputs="other")
    with pytest.raises(duckdb.ConstraintException):
        index.flush()
    assert count(database, "rollouts") == 4
    assert database.query("SELECT iterations_done FROM runs").to_pylist() == [{"iterations_done": 0}]
    assert ledger_rows(database) == [(3, "persist", 1, "done")]
    index.put_stage(PERSIST)
    assert index.flush()
    assert database.query("SELECT iterations_done FROM runs").to_pylist() == [{"iterations_done": 4}]
    assert ledger_rows(database) == [(3, "persist", 1, "stale"), (3, "persist", 2, "done")]


def test_a_stage_that_is_no_longer_done_has_no_rows(parts: tuple[Ledger, Database, Index]) -> None:
    ledger, database, index = parts
    do_stage(ledger, index, UPDATE)
    assert index.flush()
    (done,) = ledger.stages("first")
    gone = ArtifactRef(path="gone", sha256="0", size_bytes=1)
    ledger.commit(done.model_copy(update={"outputs": (gone,)}))
    assert ledger.find_done(UPDATE, "inputs") is None
    index.put_stage(UPDATE)
    assert index.flush()
    assert ledger_rows(database) == [(3, "update", 1, "stale")]
    assert count(database, "update_metrics") == 0


def test_a_process_killed_inside_the_transaction_leaves_rows_that_are_made_up(
    parts: tuple[Ledger, Database, Index], workspace: Workspace
) -> None:
    ledger, database, _ = parts
    killed = subprocess.run([sys.executable, "-c", CRASH, str(workspace.root)], check=False)
    assert killed.returncode == -9
    assert ledger.find_done(UPDATE, "inputs") is not None
    assert ledger_rows(database) == []
    assert count(database, "update_metrics") == 0
    _, database, index = open_parts(workspace)
    assert index.catch_up("first")
    assert ledger_rows(database) == [(3, "update", 1, "done")]
    assert count(database, "update_metrics") == 2


def test_catching_up_writes_what_differs_and_nothing_else(workspace: Workspace) -> None:
    read: list[StageKey] = []

    def noting(record: StageRecord) -> Rows:
        read.append(record.key)
        return rows_from_nowhere(record)

    ledger, database, index = open_parts(workspace, noting)
    ledger.create_run(make_run())
    for iteration in range(1, 15):
        for stage in (PERSIST, UPDATE):
            do_stage(ledger, index, stage.model_copy(update={"iteration": iteration}), {})
    assert index.flush()
    with database.transaction() as connection:
        connection.execute("DELETE FROM stages WHERE iteration = 5")
        connection.execute("UPDATE stages SET status = 'failed' WHERE iteration = 6 AND stage = 'update'")
        connection.execute("INSERT INTO stages SELECT * REPLACE (77 AS iteration) FROM stages WHERE iteration = 7")
        connection.execute("UPDATE runs SET status = 'failed'")
    _, _, fresh = open_parts(workspace, noting)
    assert fresh.catch_up("first")
    assert {(key.iteration, key.stage) for key in read} == {(5, "persist"), (5, "update"), (6, "update")}
    assert len(ledger_rows(database)) == 28
    assert {status for *_, status in ledger_rows(database)} == {"done"}
    assert database.query("SELECT status FROM runs").to_pylist() == [{"status": "running"}]


@pytest.mark.parametrize("mode", ["write", "read"])
def test_a_process_that_keeps_the_database_delays_only_the_rows(
    mode: str, parts: tuple[Ledger, Database, Index], caplog: pytest.LogCaptureFixture
) -> None:
    ledger, database, index = parts
    assert index.catch_up("first")
    with held_elsewhere(database.path, mode) as process:
        do_stage(ledger, index, PERSIST, rows_of_two_groups())
        assert not index.flush(wait_s=0.1)
        started = time.monotonic()
        for iteration in range(4, 24):
            do_stage(ledger, index, UPDATE.model_copy(update={"iteration": iteration}), {})
            assert not index.flush()
        assert time.monotonic() - started < 5.0
        assert caplog.text.count(f"kept open by process {process.pid}") == 1
    assert index.flush()
    assert count(database, "rollouts") == 4
    assert len(ledger_rows(database)) == 21
    assert count(database, "update_metrics") == 40


def test_a_run_that_ends_waits_for_the_database_until_the_deadline(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(ArtifactStore(workspace))
    ledger.create_run(make_run())
    database = Database(workspace, deadline_s=0.3)
    index = Index(database, ledger, rows_from_nowhere)
    assert index.settle("first")
    do_stage(ledger, index, UPDATE)
    with held_elsewhere(database.path, "read"):
        started = time.monotonic()
        assert not index.settle("first")
        assert time.monotonic() - started >= 0.3
    assert "lacks rows of run 'first'" in caplog.text
    assert "sdsearch db rebuild" in caplog.text
    assert index.settle("first")
    assert ledger_rows(database) == [(3, "update", 1, "done")]


def test_nothing_is_begun_on_a_damaged_database_and_a_run_under_way_goes_on(
    parts: tuple[Ledger, Database, Index], workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    ledger, database, index = parts
    assert index.catch_up("first")
    database.path.write_bytes(b"garbage" * 10_000)
    database.path.with_name(database.path.name + ".wal").unlink(missing_ok=True)
    do_stage(ledger, index, UPDATE)
    assert not index.flush()
    assert "sdsearch db rebuild" in caplog.text
    with pytest.raises(DatabaseUnusableError, match="make it again from the files with: sdsearch db rebuild"):
        open_parts(workspace)[2].catch_up("first")


def test_a_stage_whose_files_cannot_be_read_is_left_out_with_a_warning(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(record: StageRecord) -> Rows:
        if record.stage == "persist":
            raise DamagedArtifactError("groups.parquet is damaged")
        return rows_from_nowhere(record)

    ledger, database, index = open_parts(workspace, refuse)
    ledger.create_run(make_run())
    do_stage(ledger, index, PERSIST)
    do_stage(ledger, index, UPDATE)
    assert index.catch_up("first")
    assert ledger_rows(database) == [(3, "update", 1, "done")]
    assert "left out of the database: persist of iteration 3 of run 'first': groups.parquet is damaged" in caplog.text


def test_a_stage_writes_only_its_own_tables(parts: tuple[Ledger, Database, Index]) -> None:
    _, _, index = parts
    with pytest.raises(ValueError, match=r"stage persist writes .*, not update_metrics"):
        index.put_stage(PERSIST, update_rows("first", 3, make_update()))


def test_shared_rows_are_not_counted_as_the_stage_s_own(parts: tuple[Ledger, Database, Index]) -> None:
    ledger, _, _ = parts
    rows = rows_of_two_groups()
    own = sum(table.num_rows for name, table in rows.items() if name != "questions")
    assert count_rows(ledger.begin(PERSIST, "inputs", 1), rows) == own
