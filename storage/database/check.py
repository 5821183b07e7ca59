"""Whether files, ledger and database agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from schemas.records.ledger import StageHistory, StageKey
from storage.database.connection import Database
from storage.database.rows import STAGE_TABLES
from storage.database.sync import DatabaseSync
from storage.disk.folders import MANIFEST
from storage.errors import DamagedArtifactError
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger


def find_problems(ledger: Ledger, artifacts: ArtifactStore, database: Database, index: DatabaseSync) -> Iterator[str]:
    """Yield one sentence a problem: a damaged file, a stage that the database lacks, or rows that it lacks.

    Every file of every done stage is hashed. Checkpoints that were removed to save room are no problem.
    """
    counts = _count_rows(database)
    for run in ledger.list_runs():
        differing = set(index.differing(run.run))
        for key, history in ledger.histories(run.run):
            where = f"run '{run.run}', iteration {key.iteration}, {key.stage}"
            yield from (f"{where}: {problem}" for problem in _damaged_files(history, artifacts, run.policy_version))
            if key in differing:
                yield f"{where}: the database holds another ledger than the files"
            elif history.done is not None and counts[key] != history.done.num_rows:
                yield f"{where}: the database holds {counts[key]} rows, the stage left {history.done.num_rows}"
            differing.discard(key)
        for key in sorted(differing, key=lambda key: (key.iteration, key.stage)):
            yield f"run '{run.run}', iteration {key.iteration}, {key.stage}: in the database, but not among the files"
    yield from _unknown_runs(ledger, database)


def _damaged_files(history: StageHistory, artifacts: ArtifactStore, policy_version: int) -> Iterator[str]:
    if history.done is None:
        return
    for output in history.done.outputs:
        path = artifacts.path(output)
        is_retained = path.name != MANIFEST or path.parent.exists() or history.done.iteration >= policy_version
        try:
            if is_retained:
                artifacts.verify(output)
        except DamagedArtifactError as error:
            yield str(error)


def _count_rows(database: Database) -> Counter[StageKey]:
    counts: Counter[StageKey] = Counter()
    for stage, tables in STAGE_TABLES.items():
        for name in tables:
            rows = database.query(f'SELECT run, iteration, count(*) AS num FROM "{name}" GROUP BY run, iteration')
            for row in rows.to_pylist():
                counts[StageKey(run=row["run"], iteration=row["iteration"], stage=stage)] += row["num"]
    return counts


def _unknown_runs(ledger: Ledger, database: Database) -> Iterator[str]:
    known = {record.run: record for record in ledger.list_runs()}
    indexed = database.query("SELECT run, status, iterations_done, policy_sha256 FROM runs").to_pylist()
    yield from (
        f"run '{row['run']}' is in the database, but not among the files" for row in indexed if row["run"] not in known
    )
    tracked_status = {row["run"]: (row["status"], row["iterations_done"], row["policy_sha256"]) for row in indexed}
    for name, record in known.items():
        if tracked_status.get(name) != (record.status, record.iterations_done, record.policy_sha256):
            yield f"run '{name}': the database does not hold its present status"
