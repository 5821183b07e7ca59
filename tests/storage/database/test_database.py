"""The database file: made on first use, one writer at a time, closed to what people type."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pytest

from storage.database.connection import SCHEMA_VERSION, Database
from storage.database.query_results import Answer
from storage.database.tables import insert, table_schemas
from storage.errors import DatabaseBusyError, DatabaseUnusableError, QueryError
from storage.workspace import Workspace
from tests.support.holding import held_elsewhere
from tests.support.records import all_rows, fill, make_groups

CRASH = """
import os, signal, sys
from storage.database.connection import Database
from storage.workspace import Workspace
with Database(Workspace.open(sys.argv[1])).transaction() as connection:
    connection.execute("INSERT INTO workspace VALUES (-1, '2026-01-01')")
    if sys.argv[2] == "committed":
        connection.execute("COMMIT")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path)


@pytest.fixture
def database(workspace: Workspace) -> Database:
    return Database(workspace, deadline_s=20.0)


@pytest.fixture
def filled(database: Database) -> Database:
    fill(database, all_rows(make_groups()))
    return database


def test_the_file_is_made_on_first_use_in_the_storage_version_that_clients_open(database: Database) -> None:
    assert not database.path.exists()
    assert database.query("SELECT count(*) AS n FROM runs").to_pylist() == [{"n": 0}]
    (row,) = database.query("SELECT tags FROM duckdb_databases() WHERE database_name = 'sdsearch'").to_pylist()
    assert dict(row["tags"])["storage_version"].startswith("v1.5.0")


def test_an_error_inside_a_transaction_leaves_no_row(database: Database) -> None:
    rows = all_rows(make_groups())

    def insert_twice() -> None:
        with database.transaction() as connection:
            insert(connection, "groups", rows["groups"])
            insert(connection, "groups", rows["groups"])

    with pytest.raises(duckdb.ConstraintException, match="duplicate key"):
        insert_twice()
    assert database.query("SELECT * FROM groups").num_rows == 0
    fill(database, rows)
    assert database.query("SELECT * FROM groups").num_rows == 2


@pytest.mark.parametrize("mode", ["write", "read"])
def test_a_process_that_keeps_the_file_open_is_named_at_the_deadline(filled: Database, mode: str) -> None:
    impatient = Database(Workspace(filled.path.parent), deadline_s=0.3)
    with held_elsewhere(filled.path, mode) as process:
        started = time.monotonic()
        with pytest.raises(DatabaseBusyError, match=rf"kept open by process {process.pid} \("):
            impatient.transaction().__enter__()
        assert 0.3 <= time.monotonic() - started < 5.0


def test_the_log_is_read_by_others_and_a_checkpoint_folds_it_into_the_file(filled: Database, tmp_path: Path) -> None:
    log = filled.path.with_name(filled.path.name + ".wal")
    filled.checkpoint()
    with filled.transaction() as connection:
        connection.execute("UPDATE groups SET num_rollouts = 9 WHERE group_id = '3/norway'")
    assert log.exists()
    others_see = "SELECT num_rollouts FROM groups ORDER BY group_id"
    assert duckdb.connect(str(filled.path), read_only=True).sql(others_see).fetchall() == [(2,), (9,)]
    filled.checkpoint()
    assert not log.exists()
    copy = shutil.copy(filled.path, tmp_path / "copy.duckdb")
    assert duckdb.connect(str(copy), read_only=True).sql(others_see).fetchall() == [(2,), (9,)]


def test_readers_do_not_shut_each_other_out(filled: Database) -> None:
    impatient = Database(Workspace(filled.path.parent), deadline_s=0.0)
    with held_elsewhere(filled.path, "read"):
        assert impatient.query("SELECT * FROM groups").num_rows == 2


def test_a_waiting_writer_goes_on_when_the_holder_leaves(filled: Database) -> None:
    with held_elsewhere(filled.path, "read") as process:
        timer = threading.Timer(0.4, process.kill)
        timer.start()
        started = time.monotonic()
        with filled.transaction() as connection:
            assert time.monotonic() - started >= 0.3
            connection.execute("DELETE FROM groups")
        timer.join()
    assert filled.query("SELECT * FROM groups").num_rows == 0


def test_threads_of_one_process_take_turns(filled: Database) -> None:
    def add_one() -> None:
        with filled.transaction() as connection:
            connection.execute("UPDATE groups SET num_rollouts = num_rollouts + 1")

    threads = [threading.Thread(target=add_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert filled.query("SELECT DISTINCT num_rollouts AS n FROM groups").to_pylist() == [{"n": 6}]


def test_a_connection_that_this_process_left_open_is_named_as_its_own(filled: Database) -> None:
    impatient = Database(Workspace(filled.path.parent), deadline_s=0.1)
    with filled.read(), pytest.raises(DatabaseBusyError, match="another connection of this process"):
        impatient.transaction().__enter__()


@pytest.mark.parametrize(("moment", "expected"), [("open", 0), ("committed", 1)])
def test_a_killed_writer_loses_only_what_it_had_not_committed(
    database: Database, workspace: Workspace, moment: str, expected: int
) -> None:
    command = [sys.executable, "-c", CRASH, str(workspace.root), moment]
    assert subprocess.run(command, check=False).returncode == -9
    rows = database.query("SELECT * FROM workspace WHERE schema_version = -1")
    assert rows.num_rows == expected


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM groups",
        "CREATE TABLE mine (a INTEGER)",
        "COPY groups TO '{folder}/out.csv'",
        "SELECT * FROM read_csv('/etc/hostname')",
        "SELECT * FROM '/etc/hostname'",
        "ATTACH '{folder}/other.duckdb'",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SELECT * FROM secret_rows",
        "SELEC 1",
    ],
)
def test_what_a_person_types_can_neither_write_nor_reach_files(filled: Database, sql: str, tmp_path: Path) -> None:
    secret_rows = table_schemas()["groups"].empty_table()
    assert secret_rows.num_rows == 0
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(QueryError, match="the query does not run: "):
        filled.read_only_user_query(sql.format(folder=tmp_path))
    assert sorted(os.listdir(tmp_path)) == before
    assert filled.query("SELECT * FROM groups").num_rows == 2


def test_what_a_person_types_gives_rows(filled: Database) -> None:
    assert filled.read_only_user_query("SELECT $n + 1 AS m", {"n": 1}).records() == [{"m": 2}]
    assert "rollout_id" in [row[0] for row in filled.read_only_user_query("DESCRIBE rollouts").rows]
    assert filled.read_only_user_query("-- nothing") == Answer()


def test_a_damaged_file_is_named_with_a_way_out(workspace: Workspace, database: Database) -> None:
    workspace.database.write_bytes(b"not a database" * 1000)
    with pytest.raises(DatabaseUnusableError, match=r"sdsearch\.duckdb cannot be opened .* sdsearch db rebuild"):
        database.query("SELECT 1")


def test_tables_of_another_version_are_refused_and_left_alone(filled: Database, workspace: Workspace) -> None:
    with filled.transaction() as connection:
        connection.execute("UPDATE workspace SET schema_version = 99")
    for attempt in (lambda db: db.query("SELECT 1"), lambda db: db.transaction().__enter__()):
        with pytest.raises(
            DatabaseUnusableError, match=f"tables of layout 99, this program writes layout {SCHEMA_VERSION}"
        ):
            attempt(Database(workspace))
    assert duckdb.connect(str(workspace.database)).sql("SELECT count(*) FROM groups").fetchall() == [(2,)]


def test_a_file_that_was_moved_away_is_made_again(filled: Database) -> None:
    filled.path.rename(filled.path.with_suffix(".old"))
    assert filled.query("SELECT * FROM groups").num_rows == 0
    fill(filled, all_rows(make_groups()))
    assert filled.query("SELECT * FROM groups").num_rows == 2
