"""The trainings of a study side by side: each in a process of its own, so many at a time.

A run's lock says whether somebody trains it, its files what is done: a study that was stopped, by Ctrl-C or by kill -9
of this process or of a worker, goes on where it stopped, and no run is trained twice. Each run has its own settings,
threads and seeds, so that the results are those of one run after another, bit for bit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flows.console.terminal import format_seconds
from flows.study.plan import PlannedRun
from flows.study.trainings import Announce, RunFailure
from flows.study.worker import ERROR_PREFIX, Order
from schemas.records.study import Study
from storage.runs.lock import lock_holder
from storage.runs.studies import open_study_log
from storage.workspace import Workspace

_POLL_S: Final = 0.1
# A worker that its dead study left lets its current write finish; another study's run may take longer.
_WAIT_FOR_LOCK_S: Final = 60.0
_WAIT_FOR_END_S: Final = 60.0


@dataclass(frozen=True)
class _Worker:
    """A process that trains a run, and where its output goes."""

    plan: PlannedRun
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    started: float

    def end(self) -> None:
        """Ask the process to stop: the end of its input interrupts the training."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def failure(self) -> str | None:
        """Return why an ended process did not finish its run, None where it did."""
        code = self.process.returncode
        if code == 0:
            return None
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name} (log: {self.log})"
        with self.log.open("rb") as file:
            file.seek(self.log_start)
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        said = [line.removeprefix(ERROR_PREFIX) for line in lines if line.startswith(ERROR_PREFIX)] or lines
        return f"{said[-1] if said else f'exit code {code}'} (log: {self.log})"


class SideBySide:
    """Trains `num_workers` runs at a time, in the study's order; each writes to studies/NAME/logs/RUN.log."""

    def __init__(
        self,
        study: Study,
        workspace: Workspace,
        num_workers: int,
        announce: Announce,
        tell: Callable[[str], None],
        figures_of: Callable[[PlannedRun], str],
    ) -> None:
        self._study = study.name
        self._workspace = workspace
        self._num_workers = num_workers
        self._announce = announce
        self._tell = tell
        self._figures_of = figures_of

    def carry_out(self, planned: Sequence[PlannedRun], finished: Collection[str]) -> list[RunFailure]:
        """As of `Trainings`; an interrupt ends the workers, whose runs go on with the same command."""
        places = {plan.run: number for number, plan in enumerate(planned, 1)}
        for plan in planned:
            if plan.run in finished:
                self._announce(plan, places[plan.run], True)
        waiting = [plan for plan in planned if plan.run not in finished]
        failures: list[RunFailure] = []
        workers: list[_Worker] = []
        held_since = time.monotonic()
        try:
            while waiting or workers:
                while len(workers) < self._num_workers and (free := self._next(waiting, held_since, bool(workers))):
                    waiting.remove(free)
                    self._announce(free, places[free.run], False)
                    workers.append(self._start(free))
                    held_since = time.monotonic()
                failures += self._collect(workers)
                time.sleep(_POLL_S)
        finally:
            _end_all(workers)
        return failures

    def _next(self, waiting: Sequence[PlannedRun], held_since: float, others_work: bool) -> PlannedRun | None:
        """Return the first run that nobody trains; one that is held is tried when nothing else could be for long."""
        for plan in waiting:
            if lock_holder(self._workspace, plan.run) is None:
                return plan
        waited = time.monotonic() - held_since > _WAIT_FOR_LOCK_S
        return waiting[0] if waiting and waited and not others_work else None

    def _start(self, plan: PlannedRun) -> _Worker:
        order = Order(run=plan.run, workspace=str(self._workspace.root), settings_json=plan.settings.model_dump_json())
        with open_study_log(self._workspace, self._study, plan.run) as output:
            log_start = output.tell()
            process = subprocess.Popen(
                _command(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which ends the others.
            )
            worker = _Worker(plan, process, Path(output.name), log_start, time.monotonic())
        assert process.stdin is not None
        with suppress(OSError):  # One that died at once is found so.
            process.stdin.write(order.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        return worker

    def _collect(self, workers: list[_Worker]) -> Iterator[RunFailure]:
        """Take away the workers that have ended, say of each what came of it, and yield what failed."""
        for worker in [worker for worker in workers if worker.process.poll() is not None]:
            workers.remove(worker)
            worker.end()
            reason = worker.failure()
            if reason is None:
                took = format_seconds(time.monotonic() - worker.started)
                self._tell(f"run {worker.plan.run} done in {took}{self._figures_of(worker.plan)}")
            else:
                self._tell(f"run {worker.plan.run} failed: {reason}")
                yield RunFailure(worker.plan.run, reason)


def _command() -> list[str]:
    """Return the worker's command; it looks for modules in the current folder where this process does."""
    looks_here = bool({"", os.getcwd()} & set(sys.path))
    return [sys.executable, *([] if looks_here else ["-P"]), "-m", "flows.study.worker"]


def _end_all(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.end()
    deadline = time.monotonic() + _WAIT_FOR_END_S
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGKILL)
