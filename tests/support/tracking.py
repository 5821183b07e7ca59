"""Trackers for tests: one that remembers what it gets, one that never returns, one that raises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Event
from typing import Literal, NamedTuple

from flows.tracking.ports import Ended, Opened, Sink, Trace, TrackedRun


class Kept(NamedTuple):
    """What a tracker got of a run."""

    opened: list[TrackedRun]
    values: list[tuple[int, dict[str, float]]]
    traces: list[tuple[int, Sequence[Trace]]]
    closed: list[Ended]


KEPT: dict[str, Kept] = {}
"""By the run's name."""
NEVER = Event()


class Recorder(Sink):
    """Remembers everything, and whether the tracker knows its last step."""

    knows: bool = False
    _name: str = ""

    def open(self, run: TrackedRun) -> Opened:
        self._name = run.name
        kept = KEPT.setdefault(run.name, Kept([], [], [], []))
        kept.opened.append(run)
        last = max((step for step, _ in kept.values), default=-1)
        return Opened(f"recorder {run.name}", last if self.knows else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        KEPT[self._name].values.append((step, dict(values)))

    def traces(self, step: int, traces: Sequence[Trace]) -> None:
        KEPT[self._name].traces.append((step, traces))

    def close(self, ended: Ended) -> None:
        KEPT[self._name].closed.append(ended)


class Hanging(Sink):
    """Never returns from one of its calls."""

    at: Literal["open", "log", "close"] = "log"

    def open(self, run: TrackedRun) -> Opened:
        self._hang("open")
        return Opened("hanging")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._hang("log")

    def close(self, ended: Ended) -> None:
        self._hang("close")

    def _hang(self, here: str) -> None:
        if here == self.at:
            NEVER.wait()


class Raising(Sink):
    """Raises at a step."""

    at: int = 1

    def open(self, run: TrackedRun) -> Opened:
        return Opened("raising")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.at:
            raise ConnectionError("the server is gone\nand more lines")
