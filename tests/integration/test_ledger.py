"""A stage is done with all its rows and files, or it runs again."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from schemas.base import hash_json
from schemas.ledger import ArtifactRef, StageKey, StageRecord
from storage.artifacts import ArtifactStore
from storage.checkpoints import CheckpointStore
from storage.database import Database
from storage.errors import RunExistsError, RunNotFoundError, WorkspaceError
from storage.ledger import Ledger, finish
from storage.rollout_tables import persist_rows
from storage.tables import Rows, update_rows
from storage.workspace import Workspace
from tests.records import contains_golden, make_groups, make_run, make_scores, make_update

PERSIST = StageKey(run="first", iteration=3, stage="persist")
UPDATE = StageKey(run="first", iteration=3, stage="update")
CRASH = """
import os, signal, sys
import storage.ledger
from schemas.ledger import StageKey
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.tables import update_rows
from storage.workspace import Workspace
from tests.records import make_update

workspace = Workspace.open(sys.argv[1])
artifacts = ArtifactStore(workspace)
ledger = storage.ledger.Ledger(Database(workspace), artifacts)
key = StageKey(run="first", iteration=3, stage="update")
record = ledger.begin(key, "inputs", 1)
rows = update_rows("first", 3, make_update())
done = storage.ledger.finish(record, [artifacts.write_json(key, "report", 1)], rows)
storage.ledger._replace_attempt = lambda connection, record: os.kill(os.getpid(), signal.SIGKILL)
ledger.commit(done, rows)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path)


@pytest.fixture
def database(workspace: Workspace) -> Database:
    return Database(workspace, deadline_s=20.0)


@pytest.fixture
def artifacts(workspace: Workspace) -> ArtifactStore:
    return ArtifactStore(workspace)


@pytest.fixture
def ledger(database: Database, artifacts: ArtifactStore) -> Ledger:
    return Ledger(database, artifacts)


def rows_of_two_groups(iteration: int = 3) -> Rows:
    groups = make_groups(iteration)
    return persist_rows("first", iteration, groups, make_scores(groups), contains_golden)


def do_stage(
    ledger: Ledger, key: StageKey, outputs: list[ArtifactRef], rows: Rows, input_hash: str = "inputs"
) -> StageRecord:
    record = finish(ledger.begin(key, input_hash, seed=7), outputs, rows)
    ledger.commit(record, rows)
    return record


def count(database: Database, table_name: str) -> int:
    return database.query(f"SELECT * FROM {table_name}").num_rows


def test_runs_are_kept_exactly_and_listed_oldest_first(ledger: Ledger, workspace: Workspace) -> None:
    first = make_run("first")
    earlier = make_run("earlier").model_copy(update={"created_at": first.created_at - timedelta(days=1)})
    ledger.create_run(first)
    ledger.create_run(earlier)
    assert ledger.list_runs() == [earlier, first]
    changed = first.model_copy(update={"status": "done", "iterations_done": 10, "updated_at": datetime.now(UTC)})
    ledger.update_run(changed)
    assert ledger.get_run("first") == changed
    assert ledger.get_run("earlier") == earlier
    stored = (workspace.run_folder("first") / "run.json").read_text()
    assert type(first).model_validate_json(stored) == changed


def test_names_of_runs_are_taken_once_and_unknown_ones_get_a_hint(ledger: Ledger) -> None:
    with pytest.raises(RunNotFoundError, match=r"no run 'first' in this workspace; it has: none"):
        ledger.get_run("first")
    ledger.create_run(make_run("first"))
    with pytest.raises(RunExistsError, match="run 'first' is in this workspace already"):
        ledger.create_run(make_run("first"))
    with pytest.raises(RunNotFoundError, match=r"no run 'frist' in this workspace; did you mean 'first'\?"):
        ledger.get_run("frist")
    with pytest.raises(RunNotFoundError, match="no run 'second'"):
        ledger.update_run(make_run("second"))
    with pytest.raises(WorkspaceError, match="run name"):
        ledger.create_run(make_run("../first"))


def test_an_attempt_is_recorded_while_it_runs(ledger: Ledger) -> None:
    record = ledger.begin(PERSIST, "inputs", seed=7)
    assert (record.attempt, record.status, record.pid, record.seed) == (1, "running", os.getpid(), 7)
    assert ledger.stages("first") == [record]
    assert ledger.find_done(PERSIST, "inputs") is None


def test_a_done_stage_is_found_again_only_for_its_inputs(ledger: Ledger, artifacts: ArtifactStore) -> None:
    output = artifacts.write_json(PERSIST, "scores", [1, 2])
    done = do_stage(ledger, PERSIST, [output], rows_of_two_groups())
    assert ledger.find_done(PERSIST, "inputs") == done
    assert ledger.find_done(PERSIST, "other inputs") is None
    assert ledger.find_done(PERSIST.model_copy(update={"iteration": 4}), "inputs") is None
    assert ledger.find_done(PERSIST.model_copy(update={"run": "second"}), "inputs") is None
    assert done.outputs == (output,)
    assert done.finished_at is not None
    assert done.duration_s == (done.finished_at - done.started_at).total_seconds() > 0


def test_the_output_hash_follows_the_files_and_not_the_run(ledger: Ledger, artifacts: ArtifactStore) -> None:
    other = PERSIST.model_copy(update={"run": "second"})
    record = ledger.begin(PERSIST, "inputs", 1)
    first = [artifacts.write_json(PERSIST, name, value) for name, value in (("a", 1), ("b", 2))]
    second = [artifacts.write_json(other, name, value) for name, value in (("b", 2), ("a", 1))]
    swapped = [artifacts.write_json(other, name, value) for name, value in (("c", 1), ("d", 2))]
    expected = hash_json([["a.json", first[0].sha256], ["b.json", first[1].sha256]])
    assert finish(record, first, {}).output_hash == finish(record, second, {}).output_hash == expected
    assert finish(record, swapped, {}).output_hash != expected


def test_the_stage_writes_its_record_beside_its_files(ledger: Ledger, workspace: Workspace) -> None:
    done = do_stage(ledger, UPDATE, [], update_rows("first", 3, make_update()))
    stored = (workspace.stage_folder(UPDATE) / "stage.json").read_text()
    assert StageRecord.model_validate_json(stored) == done
    assert done.num_rows == 2


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_output_makes_its_stage_stale_with_a_warning(
    damage: str, ledger: Ledger, artifacts: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    output = artifacts.write_json(PERSIST, "scores", [1, 2])
    do_stage(ledger, PERSIST, [output], {})
    path = artifacts.path(output)
    if damage == "flip":
        path.write_bytes(path.read_bytes().replace(b"1", b"3"))
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert ledger.find_done(PERSIST, "inputs") is None
    assert "persist of iteration 3 will run again" in caplog.text
    assert "scores.json" in caplog.text
    (stale,) = ledger.stages("first")
    assert stale.status == "stale"
    assert "scores.json" in stale.error
    again = do_stage(ledger, PERSIST, [artifacts.write_json(PERSIST, "scores", [1, 2])], {})
    assert again.attempt == 2
    assert ledger.find_done(PERSIST, "inputs") == again


def test_a_checkpoint_is_verified_through_its_manifest(ledger: Ledger, workspace: Workspace) -> None:
    store = CheckpointStore(workspace)
    manifest = store.write("first", 4, lambda folder: _write(folder / "weights.json", "[1]"))
    done = do_stage(ledger, UPDATE, [manifest], {})
    assert ledger.find_done(UPDATE, "inputs") == done
    (store.path("first", 4) / "weights.json").write_text("[2]")
    assert ledger.find_done(UPDATE, "inputs") is None


def test_a_second_attempt_replaces_its_own_rows_and_no_others(ledger: Ledger, database: Database) -> None:
    do_stage(ledger, PERSIST, [], rows_of_two_groups())
    do_stage(ledger, PERSIST.model_copy(update={"iteration": 4}), [], rows_of_two_groups(4))
    do_stage(ledger, UPDATE, [], update_rows("first", 3, make_update()))
    assert count(database, "groups") == 4
    fewer = {name: table.slice(0, 1) for name, table in rows_of_two_groups().items()}
    do_stage(ledger, PERSIST, [], {name: fewer[name] for name in ("groups", "questions")}, input_hash="other")
    remaining = database.query("SELECT iteration, count(*) AS n FROM groups GROUP BY iteration ORDER BY iteration")
    assert remaining.to_pylist() == [{"iteration": 3, "n": 1}, {"iteration": 4, "n": 2}]
    assert database.query("SELECT DISTINCT iteration FROM turns").to_pylist() == [{"iteration": 4}]
    assert count(database, "update_metrics") == 2
    assert count(database, "questions") == 2


def test_only_the_latest_attempt_counts_as_done(ledger: Ledger) -> None:
    do_stage(ledger, PERSIST, [], {}, input_hash="inputs")
    do_stage(ledger, PERSIST, [], {}, input_hash="other")
    assert [record.status for record in ledger.stages("first")] == ["stale", "done"]
    assert ledger.find_done(PERSIST, "inputs") is None


def test_rows_ledger_and_run_enter_together_or_not_at_all(ledger: Ledger, database: Database) -> None:
    ledger.create_run(make_run())
    do_stage(ledger, PERSIST, [], rows_of_two_groups())
    record = ledger.begin(PERSIST, "other", seed=1)
    twice = rows_of_two_groups()
    twice["rollouts"] = pa.concat_tables([twice["rollouts"], twice["rollouts"]])
    progress = make_run().model_copy(update={"iterations_done": 4})
    with pytest.raises(duckdb.ConstraintException):
        ledger.commit(finish(record, [], twice), twice, progress)
    assert count(database, "rollouts") == 4
    assert ledger.get_run("first").iterations_done == 0
    assert [stage.status for stage in ledger.stages("first")] == ["done", "running"]
    ledger.commit(finish(record, [], {}), {}, progress)
    assert count(database, "rollouts") == 0
    assert ledger.get_run("first").iterations_done == 4


def test_a_process_killed_inside_the_transaction_leaves_the_stage_to_be_run_again(
    ledger: Ledger, database: Database, workspace: Workspace
) -> None:
    killed = subprocess.run([sys.executable, "-c", CRASH, str(workspace.root)], check=False)
    assert killed.returncode == -9
    assert (workspace.stage_folder(UPDATE) / "stage.json").exists()
    assert ledger.find_done(UPDATE, "inputs") is None
    assert count(database, "update_metrics") == 0
    done = do_stage(ledger, UPDATE, [], update_rows("first", 3, make_update()))
    died, second = ledger.stages("first")
    assert (died.status, died.error) == ("interrupted", "the process died")
    assert second == done
    assert count(database, "update_metrics") == 2


def test_a_failure_keeps_its_reason(ledger: Ledger) -> None:
    record = ledger.begin(UPDATE, "inputs", 1)
    failed = ledger.fail(record, "gradient is NaN at step 3")
    assert ledger.stages("first") == [failed]
    assert (failed.status, failed.error) == ("failed", "gradient is NaN at step 3")
    stopped = ledger.fail(ledger.begin(UPDATE, "inputs", 1), "stopped by SIGTERM", "interrupted")
    assert (stopped.attempt, stopped.status) == (2, "interrupted")
    assert ledger.find_done(UPDATE, "inputs") is None


def test_a_stage_writes_only_its_own_tables(ledger: Ledger, database: Database) -> None:
    rows = update_rows("first", 3, make_update())
    record = finish(ledger.begin(PERSIST, "inputs", 1), [], rows)
    with pytest.raises(ValueError, match=r"stage persist writes .*, not update_metrics"):
        ledger.commit(record, rows)
    assert count(database, "update_metrics") == 0


def test_a_clock_set_back_gives_no_negative_duration(ledger: Ledger) -> None:
    record = ledger.begin(UPDATE, "inputs", 1)
    ahead = record.model_copy(update={"started_at": record.started_at + timedelta(hours=1)})
    assert finish(ahead, [], {}).duration_s == 0.0


def _write(path: Path, text: str) -> None:
    path.write_text(text)
