"""Files whose bytes went bad while nobody looked: a resumed run ends as if they had not, or says what to do."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from flows.app import run_command
from schemas.records.ledger import StageKey
from storage.database.connection import Database
from storage.errors import DamagedArtifactError, DatabaseUnusableError, RunNotFoundError
from storage.workspace import Workspace
from tests.crash.compare import Snapshot, differences, snapshot
from tests.faults.damage import Kind, damage
from tests.faults.runs import RUN, quick, train

# One of each sort: what was sampled and computed last, the newest weights, indexes, records of stages.
HIT = (
    "artifacts/run=run/iteration=00001/stage=update/stage.json",
    "artifacts/run=run/iteration=00002/stage=sample/groups.parquet",
    "artifacts/run=run/iteration=00002/stage=score/stage.json",
    "artifacts/run=run/iteration=00002/stage=hindsight/blocks.parquet",
    "artifacts/run=run/iteration=00002/stage=teacher/distributions.safetensors",
    "checkpoints/run=run/version=00001/model.safetensors",
    "checkpoints/run=run/version=00001/manifest.json",
    "indexes/*/vectors.faiss",
    "corpora/*/passages.arrow",
)
RUN_FILE = "artifacts/run=run/run.json"
DATABASE = "sdsearch.duckdb"
FIRST_BLOCK, BLOCK_BYTES = 3 * 4096, 256 * 1024


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def stop_before_the_second_update(key: StageKey) -> None:
    if (key.stage, key.iteration) == ("update", 2):
        raise StoppedError


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose run was stopped before its second update."""
    folder = tmp_path_factory.mktemp("master")
    with pytest.raises(StoppedError):
        train(folder, quick(), stop_before_the_second_update)
    return folder


@pytest.fixture
def stopped(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(master, tmp_path / "workspace"))


@pytest.mark.parametrize(("kind", "seed"), [("flipped", 1), ("truncated", 2), ("removed", 3)])
def test_a_run_bears_the_loss_of_any_of_its_files(
    kind: Kind, seed: int, stopped: Path, expected: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    """The run's own record among them: the database has it too."""
    draw = random.Random(seed)
    for pattern in (*HIT, RUN_FILE):
        (path,) = stopped.glob(pattern)
        damage(path, kind, draw)
    train(stopped)
    assert differences(snapshot(stopped), expected) == []
    assert "the record of run 'run' is put back from the database" in caplog.text


def test_a_damaged_database_is_named_and_made_again(
    stopped: Path, expected: Snapshot, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(stopped / DATABASE, "truncated", random.Random(4))
    with pytest.raises(DatabaseUnusableError, match=r"make it again from the files with: sdsearch db rebuild"):
        train(stopped)
    capsys.readouterr()  # How far the run came depends on which block is cut.
    for command in (["sql", "select * from runs"], ["show", RUN]):
        assert run_command([*command, "--workspace", str(stopped)]) == 2
        error = capsys.readouterr().err
        assert "sdsearch db rebuild" in error
        assert error.count("\n") == 1
    assert run_command(["db", "rebuild", "--workspace", str(stopped)]) == 0
    train(stopped)
    assert differences(snapshot(stopped), expected) == []


def test_a_bad_block_of_the_database_is_named_whenever_it_is_read(master: Path, tmp_path: Path) -> None:
    """Most blocks are read, and their checksums compared, only when a table is looked at."""
    content = (master / DATABASE).read_bytes()
    told = []
    for start in range(FIRST_BLOCK, len(content), 5 * BLOCK_BYTES):
        damaged = bytearray(content)
        damaged[start + 2000] ^= 1
        (tmp_path / DATABASE).write_bytes(damaged)
        told += list(map(str, errors_of_use(Database(Workspace(tmp_path)))))
    assert any("Corrupt database file" in error for error in told)
    assert all("sdsearch db rebuild" in error for error in told)


def errors_of_use(database: Database) -> Iterator[DatabaseUnusableError]:
    """Read some tables, let a person ask, and write; yield what is refused. Any other error passes through."""
    uses: list[Callable[[], object]] = [
        *(partial(database.query, f"SELECT * FROM {table}") for table in ("query_credit", "turns", "rollouts")),
        partial(database.read_only_user_query, "SELECT * FROM turns"),
        partial(_write, database),
    ]
    for use in uses:
        try:
            use()
        except DatabaseUnusableError as error:
            yield error


def _write(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("UPDATE turns SET action = 'search'")


def test_a_run_whose_record_is_nowhere_is_named(stopped: Path) -> None:
    (stopped / RUN_FILE).write_text("{}", encoding="utf-8")
    (stopped / DATABASE).unlink()
    with pytest.raises(DamagedArtifactError, match=r"run\.json is no record of a run .* from a backup"):
        train(stopped)
    (stopped / RUN_FILE).unlink()
    with pytest.raises(RunNotFoundError, match="no run 'run' in this workspace"):
        train(stopped)
