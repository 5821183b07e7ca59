"""The ranks of a run, as the process that holds the run sees them: elastic agents start them, a store commands them.

That process is none of the ranks. It keeps the lock, the ledger and Prefect, so that a rank that dies takes nothing of
it along. A command is the name of a stage's work and the records that it reads; the answer names the files it wrote.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined] # torch.distributed lists no names

from flows.console.errors import UserError
from flows.run.cards import rank_cards
from flows.training.ranks.agent import Agent, AgentPlan
from flows.training.ranks.attendance import Attendance, failures_of
from flows.training.ranks.machines import Machines
from flows.training.ranks.messages import (
    ANSWER,
    COMMAND,
    DONE,
    END,
    HOST,
    PLACE,
    PROGRAM,
    PROGRESS,
    READ,
    SETTINGS,
    Command,
    Place,
)
from flows.training.ranks.program import this_program
from schemas.commands import command
from schemas.records.ledger import ArtifactRef, StageRecord
from schemas.settings.root import Settings
from sdsearch.sampling.vllm_weights import Passage

_POLL_S: Final = 0.05
_FAREWELL_S: Final = 20.0


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
        self._machines: Machines | None = None
        self._agent: Agent | None = None
        self._attendance: Attendance | None = None
        self._number = 0

    def listen(self) -> None:
        """Let other machines join from now on; RanksFailedError where the port cannot be had."""
        if self._store is not None:
            return
        distributed = self._settings.distributed
        port = int(distributed.endpoint.rpartition(":")[2]) if distributed.nodes > 1 else 0
        try:
            store = TCPStore(HOST, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
        except (DistError, ValueError) as error:
            where = f"port {port}" if port else "port"
            raise RanksFailedError(
                f"the ranks cannot be started: no {where} on {HOST} ({_first_line(error)}); {self._again}"
            ) from error
        place = self._place
        own = Place(run=place.run, source=place.source or "", host=socket.gethostname(), pid=os.getpid())
        store.set(SETTINGS, self._settings.model_dump_json())
        store.set(PROGRAM, self._program.model_dump_json())
        store.set(PLACE, own.model_dump_json())
        self._number = 0
        self._store, self._machines = store, Machines(store, distributed.nodes - 1, distributed.timeout_s)

    def do(self, work: str, records: list[StageRecord]) -> list[ArtifactRef]:
        """Have every rank do a stage's work; return the files that the first one wrote.

        Raises RanksFailedError when a rank dies or cannot do it, and UserError for what a single process refuses too.
        """
        return [ArtifactRef.model_validate(ref) for ref in self._told_of(Command(work=work, records=tuple(records)))]

    def read(self, version: int, passages: Sequence[Passage]) -> list[Tensor]:
        """Have the ranks, which hold the weights, read passages; return each one's log-probabilities (see `Reader`).

        Errors as of `do`.
        """
        answer = self._told_of(Command(work=READ, version=version, passages=tuple(passages)))
        return [torch.tensor(logprobs) for logprobs in answer]

    def _told_of(self, asked: Command) -> Any:
        try:
            store = self._started()
            number, self._number = self._number, self._number + 1
            store.set(PROGRESS, "")
            store.set(f"{COMMAND}/{number}", asked.model_dump_json())
            return self._answer(store, number)
        except BaseException as error:  # Ctrl-C and a cancellation too: what the ranks are at is not wanted any more.
            self.stop(_first_line(error))
            raise

    def close(self) -> None:
        """Let the ranks end, or end them where they do not within seconds."""
        if self._agent is not None and self._store is not None and self._agent.is_alive():
            self._store.set(f"{COMMAND}/{self._number}", Command(work=END).model_dump_json())
            self._agent.join(_FAREWELL_S)
        self.stop("")

    def stop(self, why: str) -> None:
        """End the ranks at once, whatever they are at; why: what other machines tell of it."""
        if self._agent is not None:
            self._agent.kill()
        if self._machines is not None:
            self._machines.dismiss(why)
        self._agent = self._store = self._machines = self._attendance = None

    def _answer(self, store: TCPStore, number: int) -> Any:
        agent, machines, attendance = self._agent, self._machines, self._attendance
        assert agent is not None
        assert machines is not None
        assert attendance is not None
        shown = ""
        # All ranks have let go of their devices' memory then, which whoever samples may want.
        done = [f"{DONE}/{number}/{rank}" for rank in range(self._settings.distributed.ranks)]
        while not store.check([f"{ANSWER}/{number}", *done]):
            if not agent.is_alive():
                raise self._told(store, agent, machines, attendance)
            if why := agent.stopped() or machines.gone() or attendance.late(number, agent.endpoint):
                raise RanksFailedError(f"{why}; all ranks were ended, and nothing of the stage was kept; {self._again}")
            if (text := store.get(PROGRESS).decode()) not in ("", shown):
                shown = text
                self._progress(*json.loads(text))
            time.sleep(_POLL_S)
        return json.loads(store.get(f"{ANSWER}/{number}"))

    @property
    def _again(self) -> str:
        return f"continue with: {command('resume', self._place.run, workspace=self._place.workspace)}"

    def _started(self) -> TCPStore:
        if self._store is not None and self._agent is not None and self._agent.is_alive():
            return self._store
        if self._agent is not None:
            self.stop("the run starts its ranks anew")
        self.listen()
        assert self._store is not None
        assert self._machines is not None
        distributed, place = self._settings.distributed, self._place
        if not self._machines.wait():
            raise RanksFailedError(
                f"{self._machines.num_joined + 1} of {distributed.nodes} machines are there after "
                f"{distributed.timeout_s:.0f} s (distributed.timeout_s); start on each of the others: "
                f"{command('join', distributed.endpoint, workspace=place.workspace)}; {self._again}"
            )
        address = distributed.endpoint.rpartition(":")[0] if distributed.nodes > 1 else HOST
        endpoint = f"{HOST}:{self._store.port}"
        self._attendance = Attendance(self._store, distributed)
        plan = AgentPlan(
            distributed, endpoint, address, place.workspace, place.run, place.source or "", rank_cards(self._settings)
        )
        self._agent = Agent(plan)
        return self._store

    def _told(self, store: TCPStore, agent: Agent, machines: Machines, attendance: Attendance) -> UserError:
        """Return what is told of the ranks' end: what a rank refused, or which was waited for or failed first."""
        ranks = self._settings.distributed.ranks
        failures = failures_of(store, ranks)
        for failure in failures.values():
            if failure.is_for_people:
                return UserError(failure.text)
        silent = attendance.silent(failures)
        end = agent.first_end({number: failure.text for number, failure in failures.items()})
        is_killed = silent is None and end is not None and end.is_killed
        elsewhere = None if is_killed else machines.cause()
        words = elsewhere or silent or (end and end.words)
        if words is None:
            return RanksFailedError(
                f"the {ranks} ranks could not be started or ended early: {agent.ended}; {self._again}"
            )
        return RanksFailedError(f"{words}; the others were stopped, and nothing of the stage was kept; {self._again}")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
