"""One process a run: a file lock that the system lets go when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO

from pydantic import Field, ValidationError

from schemas.base import Record
from storage.errors import RunLockedError
from storage.files import make_folder
from storage.workspace import Workspace


class LockHolder(Record):
    """The process that works on a run."""

    run: str
    host: str
    pid: int
    process_started_at: datetime = Field(description="Tells the process from a later one with the same pid.")
    locked_at: datetime


class RunLock:
    """A context manager that holds a run for this process.

    Entering raises RunLockedError, naming the holder, while another `RunLock` on the run is held.
    """

    def __init__(self, workspace: Workspace, run: str) -> None:
        self._run = run
        self._path = workspace.lock(run)
        self._file: IO[str] | None = None

    def __enter__(self) -> LockHolder:
        assert self._file is None, "a RunLock is entered once at a time"
        make_folder(self._path.parent)
        file = self._path.open("a+", encoding="utf-8")
        if not _try_lock(file, fcntl.LOCK_EX):
            message = self._describe_holder()
            file.close()
            raise RunLockedError(message)
        self._file = file
        holder = _this_process(self._run)
        file.truncate(0)
        file.write(holder.model_dump_json() + "\n")
        file.flush()
        return holder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None, "a RunLock is left only after it was entered"
        # The file stays: removing it would let two processes lock two files of the same name.
        self._file.truncate(0)
        self._file.close()
        self._file = None

    def _describe_holder(self) -> str:
        holder = _read_holder(self._path)
        what_to_do = "wait until it ends, stop it, or choose another run with --run"
        if holder is None:
            return f"run '{self._run}' is held by another process ({self._path}); {what_to_do}"
        return (
            f"run '{self._run}' is held by process {holder.pid} on {holder.host} "
            f"since {holder.locked_at:%Y-%m-%d %H:%M:%S} UTC; {what_to_do}"
        )


def lock_holder(workspace: Workspace, run: str) -> LockHolder | None:
    """Return who holds the run, None when nobody does (also when the last holder died)."""
    path = workspace.lock(run)
    if not path.exists():
        return None
    with path.open("r", encoding="utf-8") as file:
        if _try_lock(file, fcntl.LOCK_SH):
            return None
    return _read_holder(path)


def _try_lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_holder(path: Path) -> LockHolder | None:
    try:
        return LockHolder.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None


def _this_process(run: str) -> LockHolder:
    now = datetime.now(UTC)
    return LockHolder(
        run=run, host=socket.gethostname(), pid=os.getpid(), process_started_at=_process_start(now), locked_at=now
    )


def _process_start(fallback: datetime) -> datetime:
    """Return when this process started, from /proc; `fallback` on systems without it."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except (OSError, ValueError, IndexError, StopIteration):
        return fallback
    return datetime.fromtimestamp(int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK"), UTC)
