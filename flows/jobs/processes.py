"""Jobs side by side: each in a process of its own, so many at a time.

Every process reads its order as a line of JSON and ends when this one ends. Jobs have their own settings, threads and
seeds, so that the results are those of one job after another, bit for bit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, NamedTuple

from flows.console.terminal import format_seconds
from flows.jobs.orders import ERROR_PREFIX, Order
from storage.runs.lock import lock_holder
from storage.workspace import Workspace

_POLL_S: Final = 0.1
# A worker that its dead driver left lets its current write finish; another one's run may take longer.
_WAIT_FOR_LOCK_S: Final = 60.0
_WAIT_FOR_END_S: Final = 60.0


class JobFailure(NamedTuple):
    """A job that ended without being done, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Job:
    """Work for a process of its own.

    what: what the job is to people, such as `run NAME`. runs: those that it writes to; nobody else may. open_log: gives
    the file that the process writes to, at its end. title: is printed when it starts. figures: what is told of its end.
    """

    name: str
    what: str
    order: Order
    title: str
    open_log: Callable[[], IO[bytes]]
    runs: tuple[str, ...] = ()
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
    place: Mapping[str, str]

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


@dataclass(frozen=True)
class Places:
    """Where jobs are done: one at a time in each place, whose variables are added to the process's environment."""

    environments: tuple[Mapping[str, str], ...]

    @classmethod
    def of(cls, number: int, cards: Sequence[str] = ()) -> Places:
        """Return `number` places; where there are CUDA devices to choose from, each sees one of them, dealt in turn."""
        assert number >= 1
        if len(cards) < 2:
            return cls(({},) * number)
        return cls(tuple({"CUDA_VISIBLE_DEVICES": cards[place % len(cards)]} for place in range(number)))


def carry_out_jobs(
    jobs: Sequence[Job],
    workspace: Workspace,
    places: Places,
    tell: Callable[[str], None],
    watch: Callable[[], None] = lambda: None,
) -> list[JobFailure]:
    """Do the jobs, one at a time in each place, and return those that failed; their processes end with this one.

    A job whose runs another process writes to waits its turn: a worker that its dead driver left, or another study's.
    `watch` is called again and again meanwhile.
    """
    waiting, workers, free = list(jobs), list[_Worker](), list(places.environments)
    failures: list[JobFailure] = []
    held_since = time.monotonic()
    try:
        while waiting or workers:
            while free and (job := _next(waiting, workspace, held_since, bool(workers))):
                waiting.remove(job)
                tell(job.title)
                workers.append(_start(job, free.pop(0)))
                held_since = time.monotonic()
            for worker in [worker for worker in workers if worker.process.poll() is not None]:
                workers.remove(worker)
                free.append(worker.place)
                failures += _told(worker, tell)
            watch()
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


def _start(job: Job, place: Mapping[str, str]) -> _Worker:
    with job.open_log() as output:
        log_start = output.tell()
        process = subprocess.Popen(
            _command(),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **place},
            start_new_session=True,  # Ctrl-C is for this process, which ends the others.
        )
        worker = _Worker(job, process, Path(output.name), log_start, time.monotonic(), place)
    assert process.stdin is not None
    with suppress(OSError):  # One that died at once is found so.
        process.stdin.write(job.order.model_dump_json().encode() + b"\n")
        process.stdin.flush()
    return worker


def _told(worker: _Worker, tell: Callable[[str], None]) -> Iterator[JobFailure]:
    """Say what came of a worker that has ended, and yield its failure where it failed."""
    worker.end()
    reason = worker.failure()
    if reason is None:
        took = format_seconds(time.monotonic() - worker.started)
        tell(f"{worker.job.what} done in {took}{worker.job.figures()}")
    else:
        tell(f"{worker.job.what} failed: {reason}")
        yield JobFailure(worker.job.name, reason)


def _command() -> list[str]:
    """Return the worker's command; it looks for modules in the current folder where this process does."""
    looks_here = bool({"", os.getcwd()} & set(sys.path))
    return [sys.executable, *([] if looks_here else ["-P"]), "-m", "flows.jobs.worker"]


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
