"""The trackers of one run: opened with it, given its iterations as they are done, closed with it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, Final

from flows.plugins.check import open_sinks
from flows.run.progress import Reporter
from flows.tracking.ports import Ended, TrackedRun
from flows.tracking.steps import read_steps
from flows.tracking.worker import Worker
from schemas.records.ledger import RunRecord
from schemas.records.tracking import RunTracking, TrackerRun
from schemas.settings.root import Settings
from storage.runs.tracking import make_tracking_folder, read_run_tracking, write_run_tracking
from storage.storage import Storage

_PASSWORD: Final = re.compile(r"(?<=://)[^/@\s]+@")


class Tracking:
    """Gives the iterations of a run to its trackers; made by `open_tracking`.

    Every call returns at once: a tracker works on a thread of its own. One that fails or is too slow is off for the
    run, which is told once. The trackers' ids and how far each has come are kept with the run: a run that is resumed
    goes on with the same runs of the trackers, and what they lack is sent again from the database.
    """

    def __init__(self, settings: Settings, record: RunRecord, storage: Storage, reporter: Reporter) -> None:
        self._settings = settings.tracking
        self._run = record.run
        self._storage = storage
        self._reporter = reporter
        self._known = read_run_tracking(storage.workspace, record.run) if self._settings.sinks else RunTracking()
        self._lock = Lock()  # Trackers keep their places one at a time.
        self._next = 0
        self._told: set[str] = set()
        self._workers = [
            Worker(name, sink, self._tracked(name, settings, record), self._keep, self._settings.max_waiting)
            for name, sink in open_sinks(settings).items()
        ]

    def show(self, iteration: int) -> None:
        """Hand on what the database has of the iterations up to this one, which is done."""
        if self._workers and not all(worker.failure for worker in self._workers):
            steps = read_steps(self._storage, self._run, self._next, iteration, self._settings.rollouts)
            if steps is not None:
                self._next = iteration + 1
            for worker in self._workers if steps else ():
                worker.put(steps or ())
        self._tell()

    def close(self, ended: Ended) -> None:
        """End the run in every tracker; they are waited for together, `tracking.close_timeout_s` at most."""
        deadline = time.monotonic() + self._settings.close_timeout_s
        for worker in self._workers:
            worker.end(ended)
        for worker in self._workers:
            worker.join(deadline, self._settings.close_timeout_s)
        self._tell()
        for worker in self._workers:
            if worker.num_taken < worker.num_given:
                self._reporter.warned(
                    f"tracker '{worker.name}' got {worker.num_taken} of {worker.num_given} iterations of this run"
                )

    def _tracked(self, name: str, settings: Settings, record: RunRecord) -> TrackedRun:
        known = self._known.trackers.get(name)
        return TrackedRun(
            name=record.run,
            kind=record.kind.title,
            settings=without_passwords(settings.model_dump(mode="json")),
            folder=make_tracking_folder(self._storage.workspace),
            tracker_id=known.id if known else None,
            last_step=known.last_step if known else -1,
        )

    def _keep(self, name: str, tracker: TrackerRun) -> None:
        with self._lock:
            self._known = RunTracking(trackers={**self._known.trackers, name: tracker})
            write_run_tracking(self._storage.workspace, self._run, self._known)

    def _tell(self) -> None:
        for worker in self._workers:
            if worker.failure and worker.name not in self._told:
                self._told.add(worker.name)
                last = f"after iteration {worker.last_step}" if worker.last_step >= 0 else "before it got anything"
                self._reporter.warned(
                    f"tracker '{worker.name}' is off for this run, {last}: {worker.failure}; the run continues, and "
                    "sends what is missing when it is started again"
                )


@contextmanager
def open_tracking(settings: Settings, record: RunRecord, storage: Storage, reporter: Reporter) -> Iterator[Tracking]:
    """Open the trackers that the settings name, for a run whose lock is held, and close them with it."""
    tracking = Tracking(settings, record, storage, reporter)
    try:
        yield tracking
    except BaseException as error:  # Whatever stops the run is told to the trackers and goes on its way.
        tracking.close("failed" if isinstance(error, Exception) else "interrupted")
        raise
    tracking.close("done")


def without_passwords(value: Any) -> Any:
    """Return a JSON value without the names and passwords in its URLs."""
    if isinstance(value, dict):
        return {key: without_passwords(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_passwords(item) for item in value]
    return _PASSWORD.sub("", value) if isinstance(value, str) else value
