"""The ledger: which stage of which iteration is done, with what, and where its files are.

Files are the truth, DuckDB is the index. A run is its `run.json`; a stage is the `stage.json` beside its files, which
holds every attempt at it. Files are durable before `stage.json` calls an attempt done, so a stage is either done with
all its files, or it runs again. What the database holds follows (storage.database.sync) and can be made again at any
time.
One process at a time writes a run's files: whoever holds the run's lock.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from schemas.base import hash_json, nearest_name
from schemas.records.ledger import ArtifactRef, RunRecord, StageHistory, StageKey, StageRecord
from storage.disk.files import write_json_atomic
from storage.errors import DamagedArtifactError, RunExistsError, RunNotFoundError
from storage.runs.artifacts import ArtifactStore
from storage.workspace import RUN_FILE, STAGE_FILE, validate_run_name

logger = logging.getLogger(__name__)


class Ledger:
    """Reads and writes the files `run.json` and `stage.json`."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts
        self._workspace = artifacts.workspace

    def create_run(self, record: RunRecord) -> None:
        """Add a run; RunExistsError when its name is taken."""
        if self._run_file(record.run).exists():
            raise RunExistsError(
                f"run '{record.run}' is in this workspace already; continue it with resume, or choose another "
                "name with --run"
            )
        self._workspace.claim()
        self._write_run(record)

    def get_run(self, run: str) -> RunRecord:
        """Return a run's record; RunNotFoundError, with the nearest name, when there is none."""
        path = self._run_file(run)
        if path.exists():
            return _read_run(path)
        names = [record.run for record in self.list_runs()]
        near = nearest_name(run, names)
        hint = f"did you mean '{near}'?" if near else f"it has: {', '.join(names) or 'none'}"
        raise RunNotFoundError(f"no run '{run}' in this workspace; {hint}")

    def start_of(self, run: str) -> int:
        """Return the version of the policy that a run begins with: 0, of a fork that of its source, before it too."""
        path = self._run_file(run)
        return _read_run(path).first_iteration - 1 if path.exists() else 0

    def list_runs(self) -> list[RunRecord]:
        """Return all runs, oldest first; one whose `run.json` is damaged is left out with a warning."""
        records = []
        for path in self._workspace.run_files():
            try:
                records.append(_read_run(path))
            except DamagedArtifactError as error:
                logger.warning("%s", error)
        return sorted(records, key=lambda record: (record.created_at, record.run))

    def update_run(self, record: RunRecord) -> None:
        """Replace a run's record; RunNotFoundError when there is none of its name."""
        if not self._run_file(record.run).exists():
            raise RunNotFoundError(f"no run '{record.run}' in this workspace; start it with train")
        self._write_run(record)

    def put_back_run(self, record: RunRecord) -> None:
        """Write a run's record where its file is damaged or missing; the stages' own files say what is done."""
        self._write_run(record)

    def histories(self, run: str) -> Iterator[tuple[StageKey, StageHistory]]:
        """Yield each stage of a run that was ever begun, with its attempts, in the order of the iterations."""
        for key in self._workspace.stage_keys(run):
            yield key, self.history(key)

    def history(self, key: StageKey) -> StageHistory:
        """Return the attempts at a stage; none when it was never begun, or when its `stage.json` is damaged."""
        path = self._stage_file(key)
        try:
            return StageHistory.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return StageHistory(attempts=())
        except ValidationError as error:
            reason = str(error).splitlines()[0]
            logger.warning("%s is damaged (%s); the stage counts as never done", path, reason)
            return StageHistory(attempts=())

    def done(self, key: StageKey) -> StageRecord | None:
        """Return the attempt that did a stage, whatever its inputs and without a look at its files."""
        return self.history(key).done

    def begin(
        self, key: StageKey, input_hash: str, seed: int, adopted_from: str | None = None, code_hash: str = ""
    ) -> StageRecord:
        """Record that a new attempt at a stage runs in this process, and return it.

        The caller holds the run's lock, so an earlier attempt that still counts as running has died: it becomes
        interrupted.
        """
        died = {"status": "interrupted", "error": "the process died"}
        earlier = [
            attempt.model_copy(update=died) if attempt.status == "running" else attempt
            for attempt in self.history(key).attempts
        ]
        record = _running(key, len(earlier) + 1, input_hash, seed, adopted_from, code_hash)
        self._write_history(key, [*earlier, record])
        return record

    def find_done(self, key: StageKey, input_hash: str, *, is_own: bool = True) -> StageRecord | None:
        """Return the attempt that did this stage with these inputs and whose files verify, None when there is none.

        A file that is missing or damaged makes the attempt stale, with a warning in the log; where the stage is not the
        caller's own, but of a run that it takes stages from, the record stays as it is.
        """
        record = self.done(key)
        if record is None or record.input_hash != input_hash:
            return None
        try:
            self._artifacts.verify_outputs(record)
        except DamagedArtifactError as error:
            logger.warning("%s of iteration %d will run again: %s", key.stage, key.iteration, error)
            if is_own:
                self._replace(record.model_copy(update={"status": "stale", "error": str(error)}))
            return None
        return record

    def commit(self, record: StageRecord) -> None:
        """Make a done attempt, whose files are durable, the stage's truth; an earlier one becomes stale."""
        assert record.status == "done", f"commit takes a done record, not {record.status}"
        attempts = [
            earlier.model_copy(update={"status": "stale"}) if earlier.status == "done" else earlier
            for earlier in self.history(record.key).attempts
            if earlier.attempt != record.attempt
        ]
        self._write_history(record.key, [*attempts, record])

    def fail(self, record: StageRecord, error: str, status: Literal["failed", "interrupted"] = "failed") -> StageRecord:
        """Record how a running attempt ended without being done, and return it."""
        finished_at = datetime.now(UTC)
        changes = {
            "status": status,
            "error": error,
            "finished_at": finished_at,
            "duration_s": _seconds_between(record.started_at, finished_at),
        }
        failed = record.model_copy(update=changes)
        self._replace(failed)
        return failed

    def _replace(self, record: StageRecord) -> None:
        attempts = self.history(record.key).attempts
        self._write_history(
            record.key, [record if earlier.attempt == record.attempt else earlier for earlier in attempts]
        )

    def _write_history(self, key: StageKey, attempts: Sequence[StageRecord]) -> None:
        history = StageHistory(attempts=tuple(sorted(attempts, key=lambda attempt: attempt.attempt)))
        write_json_atomic(self._stage_file(key), history.model_dump(mode="json"), self._workspace.root)

    def _write_run(self, record: RunRecord) -> None:
        write_json_atomic(self._run_file(record.run), record.model_dump(mode="json"), self._workspace.root)

    def _run_file(self, run: str) -> Path:
        return self._workspace.run_folder(validate_run_name(run)) / RUN_FILE

    def _stage_file(self, key: StageKey) -> Path:
        return self._workspace.stage_folder(key) / STAGE_FILE


def finish(record: StageRecord, outputs: Sequence[ArtifactRef]) -> StageRecord:
    """Return a running attempt's record as done now, with these files; its rows are still to be counted.

    The output hash covers the names and contents of the files, not the run's name, so that equal work in two runs
    gives equal hashes.
    """
    finished_at = datetime.now(UTC)
    named = sorted([output.path.rpartition("/")[2], output.sha256] for output in outputs)
    changes = {
        "status": "done",
        "outputs": tuple(outputs),
        "output_hash": hash_json(named),
        "finished_at": finished_at,
        "duration_s": _seconds_between(record.started_at, finished_at),
    }
    return record.model_copy(update=changes)


def _read_run(path: Path) -> RunRecord:
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DamagedArtifactError(
            f"{path} is no record of a run ({reason}); resume puts it back when the database has the run, else it "
            "has to come from a backup: it holds the run's settings"
        ) from error


def _running(
    key: StageKey, attempt: int, input_hash: str, seed: int, adopted_from: str | None, code_hash: str
) -> StageRecord:
    return StageRecord(
        **key.model_dump(),
        attempt=attempt,
        status="running",
        input_hash=input_hash,
        code_hash=code_hash,
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
        adopted_from=adopted_from,
    )


def _seconds_between(start: datetime, end: datetime) -> float:
    """Clamped, since a clock may have been set back in between."""
    return max((end - start).total_seconds(), 0.0)
