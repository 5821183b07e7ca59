"""The ranks of a run, as the process that holds the run sees them: an elastic agent starts, a store commands them.

That process is none of the ranks. It keeps the lock, the ledger and Prefect, so that a rank that dies takes nothing of
it along. A command is the name of a stage's work and the records that it reads; the answer names the files it wrote.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined] # torch.distributed lists no names
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from flows.console.errors import UserError
from flows.training.ranks.messages import (
    ANSWER,
    COMMAND,
    END,
    ERROR,
    HOST,
    PROGRAM,
    PROGRESS,
    SETTINGS,
    Command,
    Failure,
)
from flows.training.ranks.processes import MODULE, StopWatch, kill_ranks
from flows.training.ranks.program import this_program
from schemas.commands import command
from schemas.records.ledger import ArtifactRef, StageRecord
from schemas.settings.root import Settings

_POLL_S: Final = 0.05
_FAREWELL_S: Final = 20.0
_SHUTDOWN_S: Final = 3
_TAIL_LINES: Final = 3
# What the agent logs of a rank's end is told in one line here.
for _name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class RanksFailedError(UserError):
    """A rank died or could not do its work: all ranks have been stopped, and nothing of the stage was committed."""


class RankPlace(NamedTuple):
    """Where ranks work: a workspace, a run in it, and the run whose policy a replay asks."""

    workspace: Path
    run: str
    source: str | None


class Ranks:
    """Starts the ranks at the first command, and anew at the next one after they failed."""

    def __init__(self, settings: Settings, place: RankPlace, progress: Callable[[int, int], None]) -> None:
        self._settings = settings
        self._place = place
        self._progress = progress
        self._program = this_program(settings)  # As the run began: files may change before ranks are started.
        self._store: TCPStore | None = None
        self._agent: threading.Thread | None = None
        self._logs: tempfile.TemporaryDirectory[str] | None = None
        self._ended: BaseException | None = None
        self._number = 0

    def do(self, work: str, records: list[StageRecord]) -> list[ArtifactRef]:
        """Have every rank do a stage's work; return the files that the first one wrote.

        Raises RanksFailedError when a rank dies or cannot do it, and UserError for what a single process refuses too.
        """
        store = self._started()
        number, self._number = self._number, self._number + 1
        store.set(PROGRESS, "")
        store.set(f"{COMMAND}/{number}", Command(work=work, records=tuple(records)).model_dump_json())
        try:
            answer = self._answer(store, number)
        except BaseException:  # Ctrl-C and a cancellation too: what the ranks are at is not wanted any more.
            self.stop()
            raise
        return [ArtifactRef.model_validate(ref) for ref in answer]

    def close(self) -> None:
        """Let the ranks end, or end them where they do not within seconds."""
        if self._agent is not None and self._store is not None and self._agent.is_alive():
            self._store.set(f"{COMMAND}/{self._number}", Command(work=END, records=()).model_dump_json())
            self._agent.join(_FAREWELL_S)
        self.stop()

    def stop(self) -> None:
        """End the ranks at once, whatever they are at."""
        if self._agent is not None and self._store is not None:
            while self._agent.is_alive():  # It may just be starting them.
                kill_ranks(self._store.port)
                self._agent.join(_POLL_S)
        if self._logs is not None:
            self._logs.cleanup()
        self._agent = self._store = self._logs = None

    def _answer(self, store: TCPStore, number: int) -> Any:
        assert self._agent is not None
        shown, watch = "", StopWatch(store.port)
        while not store.check([f"{ANSWER}/{number}"]):
            if not self._agent.is_alive():
                raise self._told(store)
            self._check_stopped(watch)
            if (text := store.get(PROGRESS).decode()) not in ("", shown):
                shown = text
                self._progress(*json.loads(text))
            time.sleep(_POLL_S)
        return json.loads(store.get(f"{ANSWER}/{number}"))

    def _check_stopped(self, watch: StopWatch) -> None:
        """End the ranks when one of them is stopped: before the others give it up, who could not tell why."""
        stopped, limit_s = watch.longest(), self._settings.distributed.timeout_s / 2
        if stopped is not None and stopped.seconds > limit_s:
            raise RanksFailedError(
                f"rank {stopped.number} of {self._settings.distributed.ranks} (process {stopped.pid}) has been stopped "
                f"(SIGSTOP) for {stopped.seconds:.0f} s, longer than half of distributed.timeout_s; all ranks were "
                f"ended, and nothing of the stage was kept; {self._again}"
            )

    @property
    def _again(self) -> str:
        return f"continue with: {command('resume', self._place.run, workspace=self._place.workspace)}"

    def _started(self) -> TCPStore:
        if self._store is not None and self._agent is not None and self._agent.is_alive():
            return self._store
        self.stop()
        try:
            self._store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
        except DistError as error:
            raise RanksFailedError(
                f"the ranks cannot be started: no port on {HOST} ({_first_line(error)}); {self._again}"
            ) from error
        self._store.set(SETTINGS, self._settings.model_dump_json())
        self._store.set(PROGRAM, self._program.model_dump_json())
        self._number, self._ended = 0, None
        self._logs = tempfile.TemporaryDirectory(prefix="sdsearch-ranks-")
        self._agent = threading.Thread(target=self._launch, args=(self._store.port,), name="ranks", daemon=True)
        self._agent.start()
        return self._store

    def _launch(self, port: int) -> None:
        assert self._logs is not None
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self._settings.distributed.ranks,
            run_id=self._place.run,
            rdzv_backend="c10d",
            rdzv_endpoint=f"{HOST}:0",
            rdzv_configs={"is_host": True},  # Whoever joins first would be it otherwise.
            local_addr=HOST,
            max_restarts=0,
            monitor_interval=0.2,
            logs_specs=DefaultLogsSpecs(log_dir=self._logs.name, redirects=Std.ALL),
            shutdown_timeout=_SHUTDOWN_S,
        )
        place = self._place
        own = (str(os.getpid()), str(port), str(place.workspace), place.run, place.source or "")
        try:
            elastic_launch(config, sys.executable)("-m", MODULE, *own)
        except BaseException as error:  # Told by the thread that waits for an answer.
            self._ended = error

    def _told(self, store: TCPStore) -> UserError:
        """Return what is told of the ranks' end: what a rank refused, or what the first one that failed said."""
        ranks = self._settings.distributed.ranks
        said = {
            number: Failure.model_validate_json(store.get(f"{ERROR}/{number}"))
            for number in range(ranks)
            if store.check([f"{ERROR}/{number}"])
        }
        for failure in said.values():
            if failure.is_for_people:
                return UserError(failure.text)
        if not isinstance(self._ended, ChildFailedError):
            return RanksFailedError(
                f"the {ranks} ranks could not be started or ended early: {self._ended}; {self._again}"
            )
        number, failed = self._ended.get_first_failure()
        how = f"signal {-failed.exitcode}" if failed.exitcode < 0 else f"exit code {failed.exitcode}"
        text = said[number].text if number in said else self._last_lines(number)
        return RanksFailedError(
            f"rank {number} of {ranks} (process {failed.pid}) ended with {how}{': ' + text if text else ''}; the "
            f"others were stopped, and nothing of the stage was kept; {self._again}"
        )

    def _last_lines(self, number: int) -> str:
        assert self._logs is not None
        for path in Path(self._logs.name).rglob(f"{number}/stderr.log"):
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return " ".join(line.strip() for line in lines[-_TAIL_LINES:])
        return ""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
