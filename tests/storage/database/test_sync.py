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
from storage.database.rollout_rows import score_rows
from storage.database.rows import StageRows, update_rows
from storage.database.sync import DatabaseSync, count_rows
from storage.errors import DamagedArtifactError, DatabaseUnusableError
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger, finish
from storage.workspace import Workspace
from tests.support.holding import held_elsewhere
from tests.support.ledger import attempts_of
from tests.support.records import make_groups, make_run, make_scores, make_update

SCORE = StageKey(run="first", iteration=3, stage="score")
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


def rows_from_nowhere(record: StageRecord) -> StageRows:
    """Stands in for the files: score and update have the same rows in every iteration but their number."""
    if record.stage == "update":
        return update_rows(record.run, record.iteration, make_update(record.iteration))
    return rows_of_two_groups(record.iteration)


def rows_of_two_groups(iteration: int = 3) -> StageRows:
    groups = make_groups(iteration)
    return score_rows("first", iteration, groups, make_scores(groups))


def open_parts(
    workspace: Workspace, rows_of: Callable[[StageRecord], StageRows] = rows_from_nowhere
) -> tuple[Ledger, Database, DatabaseSync]:
    ledger, database = Ledger(ArtifactStore(workspace)), Database(workspace, deadline_s=20.0)
    return ledger, database, DatabaseSync(database, ledger, rows_of)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path)


@pytest.fixture
def parts(workspace: Workspace) -> tuple[Ledger, Database, DatabaseSync]:
    opened = open_parts(workspace)
    opened[0].create_run(make_run())
    return opened


def do_stage(
    ledger: Ledger, sync: DatabaseSync, key: StageKey, rows: StageRows | None = None, inputs: str = "inputs"
) -> None:
    ledger.commit(finish(ledger.begin(key, inputs, seed=7), []))
    sync.put_stage(key, rows)


def ledger_rows(database: Database) -> list[tuple[int, str, int, str]]:
    rows = database.query("SELECT iteration, stage, attempt, status FROM stages ORDER BY ALL").to_pylist()
    return [tuple(row.values()) for row in rows]


def count(database: Database, table_name: str) -> int:
    return database.query(f'SELECT * FROM "{table_name}"').num_rows


def test_a_second_attempt_replaces_its_own_rows_and_no_others(parts: tuple[Ledger, Database, DatabaseSync]) -> None:
    ledger, database, sync = parts
    do_stage(ledger, sync, SCORE, rows_of_two_groups())
    do_stage(ledger, sync, SCORE.model_copy(update={"iteration": 4}), rows_of_two_groups(4))
    do_stage(ledger, sync, UPDATE, update_rows("first", 3, make_update()))
    assert sync.flush()
    assert count(database, "groups") == 4
    fewer = {name: table.slice(0, 1) for name, table in rows_of_two_groups().items()}
    do_stage(ledger, sync, SCORE, {name: fewer[name] for name in ("groups", "questions")}, inputs="other")
    assert sync.flush()
    remaining = database.query("SELECT iteration, count(*) AS n FROM groups GROUP BY iteration ORDER BY iteration")
    assert remaining.to_pylist() == [{"iteration": 3, "n": 1}, {"iteration": 4, "n": 2}]
    assert database.query("SELECT DISTINCT iteration FROM turns").to_pylist() == [{"iteration": 4}]
    assert count(database, "update_metrics") == 2
    assert count(database, "questions") == 2
    assert ledger_rows(database) == [
        (3, "score", 1, "stale"),
        (3, "score", 2, "done"),
        (3, "update", 1, "done"),
        (4, "score", 1, "done"),
    ]


def test_rows_ledger_and_run_enter_together_or_not_at_all(parts: tuple[Ledger, Database, DatabaseSync]) -> None:
    ledger, database, sync = parts
    do_stage(ledger, sync, SCORE)
    assert sync.catch_up("first")
    twice = rows_of_two_groups()
    twice["rollouts"] = pa.concat_tables([twice["rollouts"], twice["rollouts"]])
    ledger.update_run(make_run().model_copy(update={"iterations_done": 4}))
    sync.put_run("first")
    do_stage(ledger, sync, SCORE, twice, inputs="other")
    with pytest.raises(duckdb.ConstraintException):
        sync.flush()
    assert count(database, "rollouts") == 4
    assert database.query("SELECT iterations_done FROM runs").to_pylist() == [{"iterations_done": 0}]
    assert ledger_rows(database) == [(3, "score", 1, "done")]
    sync.put_stage(SCORE)
    assert sync.flush()
    assert database.query("SELECT iterations_done FROM runs").to_pylist() == [{"iterations_done": 4}]
    assert ledger_rows(database) == [(3, "score", 1, "stale"), (3, "score", 2, "done")]


def test_a_stage_that_is_no_longer_done_has_no_rows(parts: tuple[Ledger, Database, DatabaseSync]) -> None:
    ledger, database, sync = parts
    do_stage(ledger, sync, UPDATE)
    assert sync.flush()
    (done,) = attempts_of(ledger, "first")
    gone = ArtifactRef(path="gone", sha256="0", size_bytes=1)
    ledger.commit(done.model_copy(update={"outputs": (gone,)}))
    assert ledger.find_done(UPDATE, "inputs") is None
    sync.put_stage(UPDATE)
    assert sync.flush()
    assert ledger_rows(database) == [(3, "update", 1, "stale")]
    assert count(database, "update_metrics") == 0


def test_a_process_killed_inside_the_transaction_leaves_rows_that_are_made_up(
    parts: tuple[Ledger, Database, DatabaseSync], workspace: Workspace
) -> None:
    ledger, database, _ = parts
    killed = subprocess.run([sys.executable, "-c", CRASH, str(workspace.root)], check=False)
    assert killed.returncode == -9
    assert ledger.find_done(UPDATE, "inputs") is not None
    assert ledger_rows(database) == []
    assert count(database, "update_metrics") == 0
    _, database, sync = open_parts(workspace)
    assert sync.catch_up("first")
    assert ledger_rows(database) == [(3, "update", 1, "done")]
    assert count(database, "update_metrics") == 2


def test_catching_up_writes_what_differs_and_nothing_else(workspace: Workspace) -> None:
    read: list[StageKey] = []

    def noting(record: StageRecord) -> StageRows:
        read.append(record.key)
        return rows_from_nowhere(record)

    ledger, database, sync = open_parts(workspace, noting)
    ledger.create_run(make_run())
    for iteration in range(1, 15):
        for stage in (SCORE, UPDATE):
            do_stage(ledger, sync, stage.model_copy(update={"iteration": iteration}), {})
    assert sync.flush()
    with database.transaction() as connection:
        connection.execute("DELETE FROM stages WHERE iteration = 5")
        connection.execute("UPDATE stages SET status = 'failed' WHERE iteration = 6 AND stage = 'update'")
        connection.execute("INSERT INTO stages SELECT * REPLACE (77 AS iteration) FROM stages WHERE iteration = 7")
        connection.execute("UPDATE runs SET status = 'failed'")
    _, _, fresh = open_parts(workspace, noting)
    assert fresh.catch_up("first")
    assert {(key.iteration, key.stage) for key in read} == {(5, "score"), (5, "update"), (6, "update")}
    assert len(ledger_rows(database)) == 28
    assert {status for *_, status in ledger_rows(database)} == {"done"}
    assert database.query("SELECT status FROM runs").to_pylist() == [{"status": "running"}]


@pytest.mark.parametrize("mode", ["write", "read"])
def test_a_process_that_keeps_the_database_delays_only_the_rows(
    mode: str, parts: tuple[Ledger, Database, DatabaseSync], caplog: pytest.LogCaptureFixture
) -> None:
    ledger, database, sync = parts
    assert sync.catch_up("first")
    with held_elsewhere(database.path, mode) as process:
        do_stage(ledger, sync, SCORE, rows_of_two_groups())
        assert not sync.flush(wait_s=0.1)
        started = time.monotonic()
        for iteration in range(4, 24):
            do_stage(ledger, sync, UPDATE.model_copy(update={"iteration": iteration}), {})
            assert not sync.flush()
        assert time.monotonic() - started < 5.0
        assert caplog.text.count(f"kept open by process {process.pid}") == 1
    assert sync.flush()
    assert count(database, "rollouts") == 4
    assert len(ledger_rows(database)) == 21
    assert count(database, "update_metrics") == 40


def test_a_run_that_ends_waits_for_the_database_until_the_deadline(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(ArtifactStore(workspace))
    ledger.create_run(make_run())
    database = Database(workspace, deadline_s=0.3)
    sync = DatabaseSync(database, ledger, rows_from_nowhere)
    assert sync.settle("first")
    do_stage(ledger, sync, UPDATE)
    with held_elsewhere(database.path, "read"):
        started = time.monotonic()
        assert not sync.settle("first")
        assert time.monotonic() - started >= 0.3
    assert "lacks rows of run 'first'" in caplog.text
    assert "sdsearch db rebuild" in caplog.text
    assert sync.settle("first")
    assert ledger_rows(database) == [(3, "update", 1, "done")]


def test_nothing_is_begun_on_a_damaged_database_and_a_run_under_way_goes_on(
    parts: tuple[Ledger, Database, DatabaseSync], workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    ledger, database, sync = parts
    assert sync.catch_up("first")
    database.path.write_bytes(b"garbage" * 10_000)
    database.path.with_name(database.path.name + ".wal").unlink(missing_ok=True)
    do_stage(ledger, sync, UPDATE)
    assert not sync.flush()
    assert "sdsearch db rebuild" in caplog.text
    with pytest.raises(DatabaseUnusableError, match="make it again from the files with: sdsearch db rebuild"):
        open_parts(workspace)[2].catch_up("first")


def test_a_stage_whose_files_cannot_be_read_is_left_out_with_a_warning(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(record: StageRecord) -> StageRows:
        if record.stage == "score":
            raise DamagedArtifactError("groups.parquet is damaged")
        return rows_from_nowhere(record)

    ledger, database, sync = open_parts(workspace, refuse)
    ledger.create_run(make_run())
    do_stage(ledger, sync, SCORE)
    do_stage(ledger, sync, UPDATE)
    assert sync.catch_up("first")
    assert ledger_rows(database) == [(3, "update", 1, "done")]
    assert "left out of the database: score of iteration 3 of run 'first': groups.parquet is damaged" in caplog.text


def test_a_stage_writes_only_its_own_tables(parts: tuple[Ledger, Database, DatabaseSync]) -> None:
    _, _, sync = parts
    with pytest.raises(ValueError, match=r"stage score writes .*, not update_metrics"):
        sync.put_stage(SCORE, update_rows("first", 3, make_update()))


def test_shared_rows_are_not_counted_as_the_stage_s_own(parts: tuple[Ledger, Database, DatabaseSync]) -> None:
    ledger, _, _ = parts
    rows = rows_of_two_groups()
    own = sum(table.num_rows for name, table in rows.items() if name != "questions")
    assert count_rows(ledger.begin(SCORE, "inputs", 1), rows) == own
