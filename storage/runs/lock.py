"""One process a run: a file lock that the system lets go when its holder dies, and a heartbeat for other machines.

Nobody but the holder writes to a run. Whether the holder lives is decided so:

- its lock on the file is there: it lives, on this machine or, where the file system shares locks, on another;
- the lock is free and the holder was a process of this machine: it is dead, and the run is taken over;
- the lock is free but the file names a holder on another machine: file systems need not share locks, so its
  heartbeat is looked at. A fresh one means that it lives. An old one proves nothing (the machine may be cut off and
  come back), so a person decides, with `take_over`.

A holder that lives on after the run was taken from it learns so from `RunLock.check` and must not write any more.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import psutil
from pydantic import Field, ValidationError

from schemas.base import Record
from storage.disk.files import failures_named, make_folder
from storage.errors import RunLockedError
from storage.workspace import Workspace

HEARTBEAT_S = 10.0
# Six missed heartbeats: no pause of a working process is as long, and clocks of machines differ by less.
STALE_AFTER_S = 60.0
_TEXT_SIZE = 1024
_WHAT_TO_DO = "wait until it ends, stop it, or choose another run with --run"


class LockHolder(Record):
    """The process that works on a run."""

    run: str
    host: str
    pid: int
    process_started_at: datetime = Field(description="Tells the process from a later one with the same pid.")
    locked_at: datetime
    heartbeat_at: datetime = Field(description="Its last sign of life, by its own clock.")

    def is_same(self, other: LockHolder | None) -> bool:
        """True for the same holding by the same process, at any heartbeat."""
        return other is not None and self.model_copy(update={"heartbeat_at": other.heartbeat_at}) == other

    @property
    def silent_s(self) -> float:
        """Seconds since the last heartbeat; 0 when its clock is ahead of ours."""
        return max((datetime.now(UTC) - self.heartbeat_at).total_seconds(), 0.0)


class RunLock:
    """A context manager that holds a run for this process.

    Entering raises RunLockedError, naming the holder, while another process holds the run or may still hold it.
    """

    def __init__(self, workspace: Workspace, run: str, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._run = run
        self._path = workspace.lock(run)
        self._heartbeat_s = heartbeat_s
        self._descriptor: int | None = None
        self._holder: LockHolder | None = None
        self._left = threading.Event()
        self._writing = threading.Lock()

    def __enter__(self) -> LockHolder:
        assert self._descriptor is None, "a RunLock is entered once at a time"
        with failures_named(self._path):
            descriptor = _acquire(self._path, self._run)
            try:
                _refuse_living(_read_holder(self._path), self._path)
                holder = _this_process(self._run)
                _write_holder(descriptor, holder)
            except BaseException:
                os.close(descriptor)
                raise
        self._descriptor, self._holder = descriptor, holder
        self._left.clear()
        self._beating = threading.Thread(target=self._beat, args=(descriptor, holder), daemon=True)
        self._beating.start()
        return holder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._descriptor is not None, "a RunLock is left only after it was entered"
        self._left.set()
        self._beating.join()
        # The file stays: removing it would let two processes lock two files of the same name.
        if self._is_ours():
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = self._holder = None

    def check(self) -> None:
        """Raise RunLockedError when the run was taken from this process, which must not write to it any more."""
        if not self._is_ours():
            taken_by = _read_holder(self._path)
            whom = f"process {taken_by.pid} on {taken_by.host}" if taken_by else "another process"
            raise RunLockedError(
                f"run '{self._run}' was taken over by {whom}, since this process looked dead; it ends here, and "
                "what it had not committed is left out"
            )

    def _is_ours(self) -> bool:
        """True while the file at the lock's place is the one that was locked, and names this holding."""
        assert self._holder is not None
        assert self._descriptor is not None
        with self._writing:
            return _is_file_at(self._descriptor, self._path) and self._holder.is_same(_read_holder(self._path))

    def _beat(self, descriptor: int, holder: LockHolder) -> None:
        while not self._left.wait(self._heartbeat_s):
            if not self._is_ours():
                return
            # A disk may be full for a while; the lock itself still holds, and the next beat may pass.
            with self._writing, suppress(OSError):
                _write_holder(descriptor, holder.model_copy(update={"heartbeat_at": datetime.now(UTC)}))


def lock_holder(workspace: Workspace, run: str) -> LockHolder | None:
    """Return who holds the run or may still hold it, None when nobody does (also when the last holder died)."""
    path = workspace.lock(run)
    if not path.exists():
        return None
    holder = _read_holder(path)
    with path.open("rb") as file:
        if not _try_lock(file.fileno(), fcntl.LOCK_SH):
            return holder or _read_holder(path)
    return holder if holder is not None and not _is_dead(holder) else None


def held_runs(workspace: Workspace) -> list[LockHolder]:
    """Return who holds a run of this workspace or may still hold it, ordered by the runs' names."""
    names = sorted(path.stem.partition("=")[2] for path in workspace.locks.glob("run=*.lock"))
    holders = [lock_holder(workspace, name) for name in names]
    return [holder for holder in holders if holder is not None]


def take_over(workspace: Workspace, run: str) -> LockHolder | None:
    """Take a run from a holder on another machine that gave no sign of life for long; returns that holder.

    RunLockedError when the holder lives: its lock is there, or its heartbeat is fresh.
    """
    path = workspace.lock(run)
    if not path.exists():
        return None
    descriptor = _acquire(path, run)
    try:
        holder = _read_holder(path)
        if holder is not None and not _is_dead(holder) and holder.silent_s < STALE_AFTER_S:
            raise RunLockedError(_describe(holder, run, path))
        os.ftruncate(descriptor, 0)
        return holder
    finally:
        os.close(descriptor)


def _acquire(path: Path, run: str) -> int:
    """Return the descriptor of the locked file; RunLockedError when another has it."""
    make_folder(path.parent)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not _try_lock(descriptor, fcntl.LOCK_EX):
            os.close(descriptor)
            raise RunLockedError(_describe(_read_holder(path), run, path))
        if _is_file_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # Somebody removed the file before it was locked; the next one counts.


def _refuse_living(holder: LockHolder | None, path: Path) -> None:
    """Raise RunLockedError unless the holder, whose lock is free, is provably dead."""
    if holder is None or _is_dead(holder):
        return
    if holder.silent_s < STALE_AFTER_S:
        raise RunLockedError(_describe(holder, holder.run, path))
    raise RunLockedError(
        f"run '{holder.run}' was left by process {holder.pid} on {holder.host}, silent since "
        f"{holder.heartbeat_at:%Y-%m-%d %H:%M:%S} UTC, and from here nobody can tell whether it is dead; when it is, "
        f"continue with: sdsearch resume {holder.run} --take-over (or remove {path})"
    )


def _describe(holder: LockHolder | None, run: str, path: Path) -> str:
    if holder is None:
        return f"run '{run}' is held by another process ({path}); {_WHAT_TO_DO}"
    return (
        f"run '{run}' is held by process {holder.pid} on {holder.host} since {holder.locked_at:%Y-%m-%d %H:%M:%S} UTC "
        f"(last sign of life {holder.silent_s:.0f} s ago); {_WHAT_TO_DO}"
    )


def _is_dead(holder: LockHolder) -> bool:
    """True when the holder, whose lock is free, was a process of this machine that is gone."""
    if holder.host != socket.gethostname():
        return False
    started_at = _process_start(holder.pid)
    return started_at is None or abs((started_at - holder.process_started_at).total_seconds()) > 1.0


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read_holder(path: Path) -> LockHolder | None:
    try:
        return LockHolder.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None


def _write_holder(descriptor: int, holder: LockHolder) -> None:
    """Replace the file's text in one write of always the same size, so that a reader finds no half of two."""
    os.pwrite(descriptor, f"{holder.model_dump_json():<{_TEXT_SIZE - 1}}\n".encode(), 0)
    os.fsync(descriptor)  # Another machine must see it.


def _this_process(run: str) -> LockHolder:
    now = datetime.now(UTC)
    started_at = _process_start(os.getpid()) or now
    return LockHolder(
        run=run,
        host=socket.gethostname(),
        pid=os.getpid(),
        process_started_at=started_at,
        locked_at=now,
        heartbeat_at=now,
    )


def _process_start(pid: int) -> datetime | None:
    """Return when a process of this machine started; None when there is none."""
    try:
        return datetime.fromtimestamp(psutil.Process(pid).create_time(), UTC)
    except (psutil.Error, ValueError):  # ValueError: no process has such a number.
        return None
