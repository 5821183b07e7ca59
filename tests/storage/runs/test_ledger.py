"""A stage is done with all its files, or it runs again; every attempt is remembered."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from schemas.base import hash_json
from schemas.records.ledger import ArtifactRef, StageHistory, StageKey, StageRecord
from storage.errors import DamagedArtifactError, RunExistsError, RunNotFoundError, WorkspaceError
from storage.runs.artifacts import ArtifactStore
from storage.runs.checkpoints import CheckpointStore
from storage.runs.ledger import Ledger, finish
from storage.workspace import Workspace
from tests.support.ledger import attempts_of
from tests.support.records import make_run

SCORE = StageKey(run="first", iteration=3, stage="score")
UPDATE = StageKey(run="first", iteration=3, stage="update")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path)


@pytest.fixture
def artifacts(workspace: Workspace) -> ArtifactStore:
    return ArtifactStore(workspace)


@pytest.fixture
def ledger(artifacts: ArtifactStore) -> Ledger:
    return Ledger(artifacts)


def write(artifacts: ArtifactStore, key: StageKey, name: str, value: object) -> ArtifactRef:
    return artifacts.write_tensors(key, name, {"value": torch.tensor(value)})


def do_stage(ledger: Ledger, key: StageKey, outputs: list[ArtifactRef], input_hash: str = "inputs") -> StageRecord:
    record = finish(ledger.begin(key, input_hash, seed=7), outputs)
    ledger.commit(record)
    return record


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


def test_a_damaged_run_is_named_and_hides_no_other(
    ledger: Ledger, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.create_run(make_run("first"))
    ledger.create_run(make_run("second"))
    path = workspace.run_folder("first") / "run.json"
    path.write_text(path.read_text().replace("seed", "sead"))
    with pytest.raises(DamagedArtifactError, match=r"run=first/run.json is no record of a run .* from a backup"):
        ledger.get_run("first")
    assert [record.run for record in ledger.list_runs()] == ["second"]
    assert "run=first/run.json" in caplog.text


def test_an_attempt_is_recorded_while_it_runs(ledger: Ledger) -> None:
    record = ledger.begin(SCORE, "inputs", seed=7)
    assert (record.attempt, record.status, record.pid, record.seed) == (1, "running", os.getpid(), 7)
    assert attempts_of(ledger, "first") == [record]
    assert ledger.history(SCORE).ended == ()
    assert ledger.find_done(SCORE, "inputs") is None


def test_a_done_stage_is_found_again_only_for_its_inputs(ledger: Ledger, artifacts: ArtifactStore) -> None:
    output = write(artifacts, SCORE, "scores", [1, 2])
    done = do_stage(ledger, SCORE, [output])
    assert ledger.find_done(SCORE, "inputs") == ledger.done(SCORE) == done
    assert ledger.find_done(SCORE, "other inputs") is None
    assert ledger.find_done(SCORE.model_copy(update={"iteration": 4}), "inputs") is None
    assert ledger.find_done(SCORE.model_copy(update={"run": "second"}), "inputs") is None
    assert done.outputs == (output,)
    assert done.finished_at is not None
    assert done.duration_s == (done.finished_at - done.started_at).total_seconds() > 0


def test_the_output_hash_follows_the_files_and_not_the_run(ledger: Ledger, artifacts: ArtifactStore) -> None:
    other = SCORE.model_copy(update={"run": "second"})
    record = ledger.begin(SCORE, "inputs", 1)
    first = [write(artifacts, SCORE, name, value) for name, value in (("a", 1), ("b", 2))]
    second = [write(artifacts, other, name, value) for name, value in (("b", 2), ("a", 1))]
    swapped = [write(artifacts, other, name, value) for name, value in (("c", 1), ("d", 2))]
    expected = hash_json([["a.safetensors", first[0].sha256], ["b.safetensors", first[1].sha256]])
    assert finish(record, first).output_hash == finish(record, second).output_hash == expected
    assert finish(record, swapped).output_hash != expected


def test_every_attempt_stands_beside_the_files(ledger: Ledger, workspace: Workspace) -> None:
    failed = ledger.fail(ledger.begin(UPDATE, "inputs", 1), "gradient is NaN at step 3")
    stopped = ledger.fail(ledger.begin(UPDATE, "inputs", 1), "stopped by SIGTERM", "interrupted")
    ledger.begin(UPDATE, "inputs", 1)
    done = do_stage(ledger, UPDATE, [])
    stored = StageHistory.model_validate_json((workspace.stage_folder(UPDATE) / "stage.json").read_text())
    died = stored.attempts[2]
    assert stored.attempts == (failed, stopped, died, done)
    assert (failed.status, failed.error) == ("failed", "gradient is NaN at step 3")
    assert (stopped.attempt, stopped.status) == (2, "interrupted")
    assert (died.status, died.error) == ("interrupted", "the process died")
    assert attempts_of(ledger, "first") == list(stored.attempts)


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_output_makes_its_stage_stale_with_a_warning(
    damage: str, ledger: Ledger, artifacts: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    output = write(artifacts, SCORE, "scores", [1, 2])
    do_stage(ledger, SCORE, [output])
    path = artifacts.path(output)
    if damage == "flip":
        path.write_bytes(path.read_bytes().replace(b"\x01", b"\x03"))
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert ledger.find_done(SCORE, "inputs") is None
    assert "score of iteration 3 will run again" in caplog.text
    assert "scores.safetensors" in caplog.text
    (stale,) = attempts_of(ledger, "first")
    assert stale.status == "stale"
    assert "scores.safetensors" in stale.error
    again = do_stage(ledger, SCORE, [write(artifacts, SCORE, "scores", [1, 2])])
    assert again.attempt == 2
    assert ledger.find_done(SCORE, "inputs") == again


def test_a_damaged_record_of_a_stage_makes_it_run_again(
    ledger: Ledger, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    do_stage(ledger, SCORE, [])
    path = workspace.stage_folder(SCORE) / "stage.json"
    path.write_bytes(path.read_bytes()[:-40])
    assert ledger.find_done(SCORE, "inputs") is None
    assert f"{path} is damaged" in caplog.text
    assert do_stage(ledger, SCORE, []).attempt == 1


def test_a_checkpoint_is_verified_through_its_manifest(ledger: Ledger, workspace: Workspace) -> None:
    store = CheckpointStore(workspace)
    manifest = store.write("first", 4, lambda folder: _write(folder / "weights.json", "[1]"))
    done = do_stage(ledger, UPDATE, [manifest])
    assert ledger.find_done(UPDATE, "inputs") == done
    (store.path("first", 4) / "weights.json").write_text("[2]")
    assert ledger.find_done(UPDATE, "inputs") is None


def test_only_the_latest_attempt_counts_as_done(ledger: Ledger) -> None:
    do_stage(ledger, SCORE, [], input_hash="inputs")
    do_stage(ledger, SCORE, [], input_hash="other")
    assert [record.status for record in attempts_of(ledger, "first")] == ["stale", "done"]
    assert ledger.find_done(SCORE, "inputs") is None


def test_a_failed_attempt_leaves_an_earlier_one_done(ledger: Ledger, artifacts: ArtifactStore) -> None:
    done = do_stage(ledger, SCORE, [write(artifacts, SCORE, "scores", 1)])
    ledger.fail(ledger.begin(SCORE, "other inputs", 1), "disk full")
    assert ledger.find_done(SCORE, "inputs") == done


def test_a_clock_set_back_gives_no_negative_duration(ledger: Ledger) -> None:
    record = ledger.begin(UPDATE, "inputs", 1)
    ahead = record.model_copy(update={"started_at": record.started_at + timedelta(hours=1)})
    assert finish(ahead, []).duration_s == 0.0


def _write(path: Path, text: str) -> None:
    path.write_text(text)
