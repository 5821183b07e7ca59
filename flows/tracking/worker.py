"""A tracker on a thread of its own, behind a bounded queue: whatever it does, the run goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Thread

from flows.tracking.ports import Ended, Sink, TrackedRun
from flows.tracking.steps import Step
from schemas.errors import reason_of
from schemas.records.tracking import TrackerRun

logger = logging.getLogger(__name__)
Keep = Callable[[str, TrackerRun], None]
"""Makes durable how far a tracker of this name is."""


class Worker:
    """Hands a sink what it is given, in order.

    keep: called after every step that the sink has taken. max_waiting: how many calls of `put` may wait. The thread is
    a daemon: a sink that never returns does not hold up the end of the process.
    """

    def __init__(self, name: str, sink: Sink, run: TrackedRun, keep: Keep, max_waiting: int) -> None:
        self.name = name
        self.failure = ""  # Why the sink is off; empty while it is not.
        self.num_given = self.num_taken = 0
        self._sink = sink
        self._run = run
        self._keep = keep
        self._max_waiting = max_waiting
        self._last = run.last_step
        self._is_left = False  # The run has ended without the sink: nothing is kept of what it still does.
        self._queue: Queue[Sequence[Step] | Ended] = Queue(max_waiting)
        self._thread = Thread(target=self._work, name=f"tracking {name}", daemon=True)
        self._thread.start()

    @property
    def last_step(self) -> int:
        """The last step that the sink has taken, -1 for none."""
        return self._last

    def put(self, steps: Sequence[Step]) -> None:
        """Hand on steps, without waiting; a sink that is too far behind is off from now on."""
        self.num_given += len(steps)
        if self.failure:
            return
        try:
            self._queue.put_nowait(steps)
        except Full:
            self.failure = f"it is too slow: {self._max_waiting} iterations wait for it (tracking.max_waiting)"

    def end(self, ended: Ended) -> None:
        """Say that nothing follows; `join` waits for the sink."""
        with suppress(Full):
            self._queue.put_nowait(ended)
            return
        # A full queue: the end takes the place of what waits longest, which is not handed on any more.
        self.failure = self.failure or f"it is too slow: {self._max_waiting} iterations wait for it"
        with suppress(Empty):
            self._queue.get_nowait()
        with suppress(Full):
            self._queue.put_nowait(ended)

    def join(self, deadline: float, waited_s: float) -> None:
        """Wait for the sink's end until a time of the monotonic clock; a sink that has not ended by then is left."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._is_left = True
            self.failure = self.failure or f"it has not ended within {waited_s:g} s (tracking.close_timeout_s)"

    def _work(self) -> None:
        try:
            opened = self._sink.open(self._run)
            if opened.last_step is not None:
                self._last = opened.last_step
            elif opened.id != self._run.tracker_id:
                self._last = -1
            self._keep(self.name, TrackerRun(id=opened.id, last_step=self._last))
            while not self.failure:
                item = self._queue.get()
                if isinstance(item, str):
                    self._sink.close(item)
                    return
                self._take(opened.id, item)
        except BaseException as error:  # Counted and told by the run's own thread; a library may raise anything.
            self.failure = f"{type(error).__name__}: {reason_of(error)}"
            logger.debug("tracking by %s failed", self.name, exc_info=True)
        with suppress(BaseException):  # What failed before may fail to end too, and has been told.
            self._sink.close("failed")

    def _take(self, tracker_id: str, steps: Sequence[Step]) -> None:
        for step in steps:
            if self.failure:
                return
            if step.number > self._last:
                if step.traces:
                    self._sink.traces(step.number, step.traces)
                self._sink.log(step.number, step.values)
                self._last = step.number
                if self._is_left:
                    return
                self._keep(self.name, TrackerRun(id=tracker_id, last_step=self._last))
            self.num_taken += 1
