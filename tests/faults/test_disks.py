"""A disk that is full or read-only: one clear error, nothing damaged, and the run goes on as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.app import run_command
from flows.retrieval.open import open_retriever
from schemas.records.ledger import STAGES, StageKey, StageName
from storage.database.connection import Database
from storage.disk.files import is_temporary
from storage.errors import DatabaseUnusableError, WorkspaceError, WriteFailedError
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.workspace import Workspace
from tests.crash.compare import Snapshot, differences, snapshot
from tests.faults.disks import Disk, limited_files
from tests.faults.runs import RUN, quick, train

ROOM_FOR_THE_LEDGER = 24 * 1024


def attempts(workspace: Path, stage: StageName, iteration: int = 2) -> list[tuple[str, str]]:
    """Return status and error of each attempt at a stage."""
    ledger = Ledger(ArtifactStore(Workspace(workspace)))
    history = ledger.history(StageKey(run=RUN, iteration=iteration, stage=stage))
    return [(attempt.status, attempt.error) for attempt in history.attempts]


def temporary_files(workspace: Path) -> list[Path]:
    return [path for path in workspace.rglob("*") if is_temporary(path)]


def test_a_disk_that_fills_up_in_every_stage(disk: Disk, expected: Snapshot) -> None:
    """One run, stopped by a full disk in each stage of its second iteration, and resumed each time.

    In the update the ledger's few bytes still fit, and the checkpoint does not.
    """
    workspace = disk.root / "workspace"
    settings = quick()
    for stage in STAGES:

        def fill(key: StageKey, stage: StageName = stage) -> None:
            if (key.stage, key.iteration) == (stage, 2):
                disk.fill(left_bytes=ROOM_FOR_THE_LEDGER if stage == "update" else 0)

        with pytest.raises(WriteFailedError) as caught:
            train(workspace, settings, fill)
        message = str(caught.value)
        assert ("version=00002" if stage == "update" else f"stage={stage}/") in message, "the error names the place"
        assert "cannot be written (No space left on device); 0.0 MB are left there: free some space, then" in message
        assert "\n" not in message
        assert temporary_files(workspace) == []
        if stage == "update":
            ((status, error),) = attempts(workspace, stage)
            assert status == "failed"
            assert "cannot be written (No space left on device)" in error
            assert Ledger(ArtifactStore(Workspace(workspace))).get_run(RUN).status == "failed"
        disk.free()
        settings = None
    train(workspace)
    assert [status for status, _ in attempts(workspace, "update")] == ["failed", "done"]
    assert differences(snapshot(workspace), expected) == []


def test_a_full_disk_on_the_command_line(disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    disk.fill()
    assert run_command(["train", "tiny", "--no-prefect", "--workspace", str(disk.root / "new")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: workspace {disk.root / 'new'} cannot be written (No space left on device); ")
    assert "free some space" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("left_bytes", [0, 16 * 1024, 300 * 1024])
def test_an_index_without_space_leaves_nothing(left_bytes: int, disk: Disk) -> None:
    workspace, retrieval = Workspace.open(disk.root / "workspace"), quick().retrieval
    disk.fill(left_bytes)
    with pytest.raises(WriteFailedError, match=r"(?:indexes|corpora).* cannot be written \(No space left on device\)"):
        open_retriever(retrieval, workspace)
    assert list(workspace.indexes.rglob("*")) == []
    assert [path.name for path in workspace.corpora.rglob(".*")] == []
    disk.free()
    retriever, _ = open_retriever(retrieval, workspace)
    assert retriever.search(["Andorra"], 1)


def test_a_database_without_space_keeps_its_rows(disk: Disk) -> None:
    workspace = Workspace.open(disk.root / "workspace")
    database = Database(workspace)
    put_questions(database, "first", 10)
    disk.fill()
    with pytest.raises(DatabaseUnusableError, match=r"No space left on device.*; free some space there"):
        put_questions(database, "second", 10_000)
    assert database.query("SELECT count(*) AS n FROM questions").to_pylist() == [{"n": 10}]
    disk.free()
    put_questions(database, "third", 20)
    assert Database(workspace).query("SELECT count(*) AS n FROM questions").to_pylist() == [{"n": 30}]


def put_questions(database: Database, prefix: str, number: int) -> None:
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO questions SELECT 'run', $prefix || i, 'd', 'q', 'dev', repeat('x', 500), [], '' "
            "FROM range($number) AS numbers (i)",
            {"prefix": prefix, "number": number},
        )


def test_a_database_on_a_full_disk_delays_its_rows_and_nothing_else(
    disk: Disk, expected: Snapshot, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The database lies on the full disk, the files on another: the run ends well, and the rows follow."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "sdsearch.duckdb").symlink_to(disk.root / "sdsearch.duckdb")
    train(workspace, quick(), lambda key: disk.fill())
    assert "its rows enter the database later" in caplog.text
    assert "sdsearch db rebuild" in caplog.text
    disk.free()
    train(workspace)
    assert differences(snapshot(workspace), expected) == []


def test_a_checkpoint_that_the_system_refuses_half_way(tmp_path: Path, expected: Snapshot) -> None:
    """Without a mount: files may not grow beyond 20 kB while the update writes its weights."""
    limits = []

    def limit(key: StageKey) -> None:
        if key.iteration == 2 and key.stage == "update":
            limits.append(limited_files(20_000))
            limits[0].__enter__()

    try:
        with pytest.raises(
            WriteFailedError, match=r"version=00002 cannot be written \(File too large\); raise the limit"
        ):
            train(tmp_path, quick(), limit)
    finally:
        for entered in limits:
            entered.__exit__(None, None, None)
    assert [status for status, _ in attempts(tmp_path, "update")] == ["failed"]
    assert temporary_files(tmp_path) == []
    train(tmp_path)
    assert differences(snapshot(tmp_path), expected) == []


def test_a_disk_that_becomes_read_only(disk: Disk, expected: Snapshot, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = disk.root / "workspace"

    def protect(key: StageKey) -> None:
        if (key.stage, key.iteration) == ("hindsight", 2):
            disk.set_read_only(True)

    with pytest.raises(
        WriteFailedError, match=r"stage=hindsight/.* cannot be written \(Read-only file system\); make it"
    ):
        train(workspace, quick(), protect)
    with pytest.raises(WorkspaceError, match=r"cannot be written \(Read-only file system\); make it writable"):
        train(workspace)
    for reading in (["runs"], ["show", RUN], ["sql", "select count(*) as n from rollouts"]):
        assert run_command([*reading, "--workspace", str(workspace)]) == 0, capsys.readouterr().err
    disk.set_read_only(False)
    train(workspace)
    assert differences(snapshot(workspace), expected) == []
