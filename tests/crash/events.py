"""What a run does, told from outside as a trace of events, and the kill that one of them sets off.

Only tests use this: the product has no place where it can be told to fail. Everything that a run does to its
workspace goes through a few calls (a stage performed, a file synced, renamed or removed, an SQL statement run), and
those are wrapped in the forked process before it starts to work. Each event is one line of the trace, written
unbuffered, so that the trace of a killed process is whole up to its death.
"""

from __future__ import annotations

import os
import re
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

_TEMPORARY = re.compile(r"\.(.+?)\.\d+\.[0-9a-f]{8}\.tmp")
_STARTUP = "start"
ORDER = "di"  # What the executioner is told: seconds to wait, and the signal.


@dataclass(frozen=True)
class Strike:
    """A signal at the n-th event of this name: at once, or by another process after a delay.

    `halve`: the file that the event is about loses its second half first, as if it had not been written yet.
    """

    event: str
    occurrence: int = 1
    delay_s: float = 0.0
    halve: bool = False
    signal: int = signal.SIGKILL

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Event:
    """A line of a trace; `at_s` counts from the process's start."""

    at_s: float
    name: str


def read_trace(path: Path) -> list[Event]:
    """Return the events of a trace; a last line that the kill cut short is dropped."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [Event(float(at), name) for at, _, name in (line.partition(" ") for line in lines)]


class Probe:
    """Wraps what a run calls, writes the trace, and strikes; lives in the process that will die."""

    def __init__(self, workspace: Path, trace: Path, strike: Strike | None, executioner: int) -> None:
        self._root = f"{workspace}{os.sep}"
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._strike = strike
        self._executioner = executioner
        self._seen: Counter[str] = Counter()
        self._stage = _STARTUP
        self._run = ""
        self._started = time.monotonic()

    def install(self, eager: bool) -> None:
        """Wrap everything, and tell the first event.

        eager: rows enter the database after each stage instead of every few seconds, so that there are many
        transactions, each at the same place in every run.
        """
        if eager:
            import storage.database.sync

            storage.database.sync.FLUSH_EVERY_S = 0.0
        self._wrap_stages()
        self._wrap_files()
        self._wrap_database()
        self.tell(_STARTUP)

    def tell(self, name: str, path: str = "") -> None:
        """Write an event, and strike when it is the one."""
        self._seen[name] += 1
        os.write(self._trace, f"{time.monotonic() - self._started:.6f} {name}\n".encode())
        strike = self._strike
        if strike is None or strike.event != name or strike.occurrence != self._seen[name]:
            return
        if strike.halve:
            os.truncate(path, os.stat(path).st_size // 2)
        if strike.delay_s:
            os.write(self._executioner, struct.pack(ORDER, strike.delay_s, strike.signal))
        else:
            os.kill(os.getpid(), strike.signal)

    def _wrap_stages(self) -> None:
        import flows.training.stages.update
        from flows.run.perform import Attempt, StageRunner
        from sdsearch.sampling.rollouts import RolloutLoop

        attempt, roll_out, update_policy = (
            StageRunner.attempt,
            RolloutLoop.roll_out,
            flows.training.stages.update.update_policy,
        )

        @contextmanager
        def attempted(runner: Any, stage: Any, iteration: int, upstream: Any) -> Iterator[Attempt]:
            self._stage = self._name_of(stage.name, iteration, runner.run)
            self.tell(f"{self._stage} begins")
            with attempt(runner, stage, iteration, upstream) as opened:
                if opened.needed:
                    self.tell(f"{self._stage} works")
                yield opened
                if opened.needed:
                    self.tell(f"{self._stage} worked")
            self.tell(f"{self._stage} is done")
            self._stage = f"after {self._stage}"

        @wraps(roll_out)
        def rolled_out(loop: Any, questions: Any, **options: Any) -> Any:
            if self._stage.startswith("sample@"):
                self.tell(f"{self._stage} rolls out {' '.join(question.id for question in questions)}")
            return roll_out(loop, questions, **options)

        @wraps(update_policy)
        def updated(*arguments: Any, **options: Any) -> Iterator[Any]:
            self.tell(f"{self._stage} trains")
            yield from update_policy(*arguments, **options)

        StageRunner.attempt = attempted
        RolloutLoop.roll_out = rolled_out
        flows.training.stages.update.update_policy = updated

    def _name_of(self, stage: str, iteration: int, run: str) -> str:
        """Return a stage's name; that of a run which goes on in the first one's place has the run too."""
        self._run = self._run or run
        return f"{stage}@{iteration}" + (f" of {run}" if run != self._run else "")

    def _wrap_files(self) -> None:
        fsync, unlink = os.fsync, os.unlink

        def synced(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if os.path.isfile(path):
                self._tell_of("sync", path)
            fsync(descriptor)

        def unlinked(path: Any, *, dir_fd: int | None = None) -> None:
            folder = "" if dir_fd is None else f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/"
            self._tell_of("remove", f"{folder}{os.fspath(path)}")
            unlink(path, dir_fd=dir_fd)

        os.fsync, os.unlink = synced, unlinked
        os.rename, os.replace = self._renaming(os.rename), self._renaming(os.replace)

    def _renaming(self, rename: Callable[..., None]) -> Callable[..., None]:
        def renamed(source: Any, target: Any, **options: Any) -> None:
            self._tell_of("rename", os.fspath(target))
            rename(source, target, **options)
            self._tell_of("renamed", os.fspath(target))

        return renamed

    def _tell_of(self, verb: str, path: str) -> None:
        if not path.startswith(self._root):
            return
        parts = [_TEMPORARY.sub(r"\1~", part) for part in path.removeprefix(self._root).split(os.sep)]
        self.tell(f"{self._stage} {verb} {os.sep.join(parts)}", path)

    def _wrap_database(self) -> None:
        import duckdb

        execute = duckdb.DuckDBPyConnection.execute
        open_transactions: set[int] = set()

        @wraps(execute)
        def executed(connection: Any, query: Any, *arguments: Any, **options: Any) -> Any:
            verb = str(query).split(None, 1)[0].upper()
            key = id(connection)
            if key in open_transactions or verb == "CHECKPOINT":
                self.tell(f"{self._stage} sql {verb}")
            result = execute(connection, query, *arguments, **options)
            if verb == "BEGIN":
                open_transactions.add(key)
            elif verb in ("COMMIT", "ROLLBACK"):
                open_transactions.discard(key)
                self.tell(f"{self._stage} sql {verb} done")
            return result

        duckdb.DuckDBPyConnection.execute = executed
