"""Which ranks have started, done their part or said why they ended: those that are waited for in vain are named.

Ranks that wait for another one are told of its silence by gloo, after `distributed.timeout_s`. Where no rank waits yet
(they are only starting) or any more (they have done their part), the run's process waits as long, and no longer.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Final

from torch.distributed import TCPStore  # type: ignore[attr-defined] # torch.distributed lists no names

from flows.training.ranks.messages import DONE, ERROR, HERE, Failure, RankProcess
from flows.training.ranks.processes import numbered_processes
from schemas.settings.distributed import DistributedSettings

_LOOK_S: Final = 1.0
_POLL_S: Final = 0.05
_GRACE_S: Final = 5.0
_NAMED: Final = 4


class Attendance:
    """Notices the ranks that the run's process has waited for longer than the time-out; made as they are started."""

    def __init__(self, store: TCPStore, distributed: DistributedSettings) -> None:
        self._store = store
        self._distributed = distributed
        self._looked = self._began = time.monotonic()
        self._are_here = False
        self._first_done: tuple[int, float] | None = None  # A command, and when a rank was first seen to have done it.

    def late(self, number: int, endpoint: str) -> str | None:
        """Return what is told of ranks that are late to start, or with the command `number`; None where none is.

        endpoint: what the ranks were told, by which those of this machine are found. Looks once a second.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return None
        self._looked = now
        if self._are_here:
            return self._late_to_finish(number, now)
        away = self._without(HERE)
        self._are_here = not away
        if not away or now - self._began <= self._distributed.timeout_s:
            return None
        return f"{self._named(away, numbered_processes(endpoint))} {_have(away)} not started after {self._after}"

    def _late_to_finish(self, number: int, now: float) -> str | None:
        undone = self._without(f"{DONE}/{number}")
        if len(undone) == self._distributed.ranks:
            return None
        if self._first_done is None or self._first_done[0] != number:
            self._first_done = (number, now)
        if not undone or now - self._first_done[1] <= self._distributed.timeout_s:
            return None
        return f"{self._named(undone)} {_have(undone)} not done what the other ranks have done, after {self._after}"

    def silent(self, failures: Mapping[int, Failure]) -> str | None:
        """Return what is told of ranks that others waited for in vain; None where no rank did.

        failures: what ranks said of their end. Those that were waited for said nothing.
        """
        waited = [number for number, failure in failures.items() if failure.waited]
        silent = [number for number in range(self._distributed.ranks) if number not in failures]
        if not waited or not silent:
            return None
        by = f"rank {waited[0]}" if len(waited) == 1 else f"{len(waited)} ranks"
        return f"{by} waited for {self._named(silent)} in vain, for {self._after}"

    @property
    def _after(self) -> str:
        return f"{self._distributed.timeout_s:g} s (distributed.timeout_s)"

    def _without(self, mark: str) -> list[int]:
        return [number for number in range(self._distributed.ranks) if not self._store.check([f"{mark}/{number}"])]

    def _named(self, numbers: Sequence[int], pids: Mapping[int, int] | None = None) -> str:
        """Return ranks by number and, where they are known, processes."""
        known = [self._one(number, (pids or {}).get(number)) for number in numbers[:_NAMED]]
        others = f" and {len(numbers) - _NAMED} others" if len(numbers) > _NAMED else ""
        return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(known)}{others} of {self._distributed.ranks}"

    def _one(self, number: int, pid: int | None) -> str:
        if self._store.check([f"{HERE}/{number}"]):
            process = RankProcess.model_validate_json(self._store.get(f"{HERE}/{number}"))
            on = "" if process.host == socket.gethostname() else f" on {process.host}"
            return f"{number} (process {process.pid}{on})"
        return str(number) if pid is None else f"{number} (process {pid})"


def failures_of(store: TCPStore, ranks: int) -> dict[int, Failure]:
    """Return what ranks said of their end, by their numbers."""
    said = [number for number in range(ranks) if store.check([f"{ERROR}/{number}"])]
    return {number: Failure.model_validate_json(store.get(f"{ERROR}/{number}")) for number in said}


def sign_in(store: TCPStore, number: int) -> None:
    """Say that a rank, this process, has started and waits for the others."""
    store.set(f"{HERE}/{number}", RankProcess(host=socket.gethostname(), pid=os.getpid()).model_dump_json())


def let_others_speak(store: TCPStore, ranks: int) -> None:
    """Wait for seconds, no longer, until all ranks but one have said why they end: that one was waited for.

    The first rank whose process ends has the agent end the others.
    """
    until = time.monotonic() + _GRACE_S
    while len(failures_of(store, ranks)) < ranks - 1 and time.monotonic() < until:
        time.sleep(_POLL_S)


def _have(numbers: Sequence[int]) -> str:
    return "have" if len(numbers) > 1 else "has"
