"""The ranks as processes of this machine: which they are, which of them are stopped, and their end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

import psutil

MODULE: Final = "flows.training.ranks.rank"
_LOOK_S: Final = 1.0


class StoppedRank(NamedTuple):
    """A rank that SIGSTOP or a debugger keeps from working."""

    number: int
    pid: int
    seconds: float


class StopWatch:
    """Notices ranks that are stopped: they answer nobody, and all of them may be, so that none tells."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._since: dict[int, float] = {}
        self._last = 0.0

    def longest(self) -> StoppedRank | None:
        """Return the rank that has been stopped for the longest time, None when none is; looks once a second."""
        now = time.monotonic()
        if now - self._last >= _LOOK_S:
            self._last = now
            stopped = [child.pid for child in rank_processes(self._endpoint) if _is_stopped(child)]
            self._since = {pid: self._since.get(pid, now) for pid in stopped}
        if not self._since:
            return None
        pid = min(self._since, key=lambda pid: (self._since[pid], pid))
        return StoppedRank(_number(pid), pid, now - self._since[pid])


def rank_processes(endpoint: str) -> Iterator[psutil.Process]:
    """Yield this process's ranks that were told this endpoint, also those that are stopped or only starting."""
    for child in psutil.Process().children():
        try:
            if {MODULE, endpoint} <= set(child.cmdline()):
                yield child
        except psutil.Error:  # It has ended meanwhile.
            continue


def numbered_processes(endpoint: str) -> dict[int, int]:
    """Return the processes of this machine's ranks by their numbers."""
    return {_number(child.pid): child.pid for child in rank_processes(endpoint)}


def kill_ranks(endpoint: str) -> int:
    """Kill the ranks at once; return how many there were."""
    ranks = list(rank_processes(endpoint))
    for child in ranks:
        with suppress(psutil.Error):
            child.kill()
    return len(ranks)


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _number(pid: int) -> int:
    try:
        return int(psutil.Process(pid).environ()["RANK"])
    except (psutil.Error, KeyError):
        return -1
