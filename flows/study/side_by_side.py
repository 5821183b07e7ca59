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
from functools import partial
from pathlib import Path
from typing import Final

from flows.console.terminal import format_seconds
from flows.study.alike import runs_alike
from flows.study.plan import PlannedRun
from flows.study.trainings import RunFailure, title_line
from flows.study.worker import ERROR_PREFIX, Order, TrainOrder
from schemas.records.study import Study
from storage.runs.lock import lock_holder
from storage.runs.studies import open_study_log
from storage.workspace import Workspace

_POLL_S: Final = 0.1
# A worker that its dead study left lets its current write finish; another study's run may take longer.
_WAIT_FOR_LOCK_S: Final = 60.0
_WAIT_FOR_END_S: Final = 60.0


@dataclass(frozen=True)
class Job:
    """Work for a process of its own: `runs` are those that it writes to, `title` is printed when it starts."""

    name: str
    runs: tuple[str, ...]
    order: Order
    title: str
    figures: Callable[[], str] = lambda: ""

    def is_free(self, workspace: Workspace) -> bool:
        """True while no process writes to its runs."""
        return all(lock_holder(workspace, run) is None for run in self.runs)


@dataclass(frozen=True)
class _Worker:
    """A process that does a job, and where its output goes."""

    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    started: float

    def end(self) -> None:
        """Ask the process to stop: the end of its input interrupts the work."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def failure(self) -> str | None:
        """Return why an ended process did not do its job, None where it did."""
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
        tell: Callable[[str], None],
        figures_of: Callable[[PlannedRun], str],
    ) -> None:
        self._study = study
        self._workspace = workspace
        self._num_workers = num_workers
        self._tell = tell
        self._figures_of = figures_of

    def carry_out(self, planned: Sequence[PlannedRun], finished: Collection[str]) -> list[RunFailure]:
        """As of `Trainings`; an interrupt ends the workers, whose runs go on with the same command."""
        jobs = []
        for number, plan in enumerate(planned, 1):
            title = title_line(self._study, plan, number)
            if plan.run in finished:
                self._tell(f"{title}, finished already")
                continue
            order = TrainOrder(
                run=plan.run,
                workspace=str(self._workspace.root),
                settings_json=plan.settings.model_dump_json(),
                alike=runs_alike(planned, plan),
            )
            jobs.append(Job(plan.run, (plan.run,), order, title, partial(self._figures_of, plan)))
        return carry_out_jobs(jobs, self._study.name, self._workspace, self._num_workers, self._tell)


def carry_out_jobs(
    jobs: Sequence[Job], study: str, workspace: Workspace, num_workers: int, tell: Callable[[str], None]
) -> list[RunFailure]:
    """Do the jobs, `num_workers` at a time, and return those that failed; their processes end with this one.

    A job whose runs another process writes to waits its turn: a worker that its dead study left, or another study's.
    """
    waiting, workers = list(jobs), list[_Worker]()
    failures: list[RunFailure] = []
    held_since = time.monotonic()
    try:
        while waiting or workers:
            while len(workers) < num_workers and (job := _next(waiting, workspace, held_since, bool(workers))):
                waiting.remove(job)
                tell(job.title)
                workers.append(_start(job, study, workspace))
                held_since = time.monotonic()
            failures += _collect(workers, tell)
            time.sleep(_POLL_S)
    finally:
        _end_all(workers)
    return failures


def _next(waiting: Sequence[Job], workspace: Workspace, held_since: float, others_work: bool) -> Job | None:
    """Return the first job that is free; one that is not is tried when nothing else could be for long."""
    for job in waiting:
        if job.is_free(workspace):
            return job
    waited = time.monotonic() - held_since > _WAIT_FOR_LOCK_S
    return waiting[0] if waiting and waited and not others_work else None


def _start(job: Job, study: str, workspace: Workspace) -> _Worker:
    with open_study_log(workspace, study, job.name) as output:
        log_start = output.tell()
        process = subprocess.Popen(
            _command(),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process, which ends the others.
        )
        worker = _Worker(job, process, Path(output.name), log_start, time.monotonic())
    assert process.stdin is not None
    with suppress(OSError):  # One that died at once is found so.
        process.stdin.write(job.order.model_dump_json().encode() + b"\n")
        process.stdin.flush()
    return worker


def _collect(workers: list[_Worker], tell: Callable[[str], None]) -> Iterator[RunFailure]:
    """Take away the workers that have ended, say of each what came of it, and yield what failed."""
    for worker in [worker for worker in workers if worker.process.poll() is not None]:
        workers.remove(worker)
        worker.end()
        reason = worker.failure()
        if reason is None:
            took = format_seconds(time.monotonic() - worker.started)
            tell(f"run {worker.job.name} done in {took}{worker.job.figures()}")
        else:
            tell(f"run {worker.job.name} failed: {reason}")
            yield RunFailure(worker.job.name, reason)


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
