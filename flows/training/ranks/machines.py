"""The other machines of a run, as its process sees them: who has joined, and who is gone."""

from __future__ import annotations

import time
from typing import Final

from torch.distributed import TCPStore  # type: ignore[attr-defined] # torch.distributed lists no names

from flows.training.ranks.messages import BEAT, LEFT, MACHINES, START, STOP, Machine

BEAT_S: Final = 1.0
"""How often a machine gives a sign of life, seconds."""
_POLL_S: Final = 0.1
_FAREWELL_S: Final = 10.0
_LATE_S: Final = 4.0  # So long without a sign of life explains why ranks elsewhere failed.


class Machines:
    """Counts the machines that join and listens for their signs of life; there are none in a run on one machine."""

    def __init__(self, store: TCPStore, expected: int, timeout_s: float) -> None:
        self._store = store
        self._expected = expected
        self._timeout_s = timeout_s
        self._heard: dict[int, tuple[int, float]] = {}  # The last beat, and when it was first seen.

    @property
    def num_joined(self) -> int:
        """Machines that have joined so far."""
        asked = self._store.add(MACHINES, 0) if self._expected else 0
        return sum(self._store.check([f"{MACHINES}/{number}"]) for number in range(min(asked, self._expected)))

    def wait(self) -> bool:
        """Let all machines start their ranks as soon as they have joined; False where one does not in time."""
        until = time.monotonic() + self._timeout_s
        while self.num_joined < self._expected:
            if time.monotonic() > until:
                return False
            time.sleep(_POLL_S)
        self._heard.clear()
        self._store.set(START, "")
        return True

    def gone(self, silence_s: float | None = None) -> str | None:
        """Return what is told of a machine that left before its work was done, or is silent; None where none is.

        silence_s: how long without a sign of life counts; half of the time-out where it is not given.
        """
        for number in range(self._expected):
            if self._store.check([f"{LEFT}/{number}"]):
                if why := self._store.get(f"{LEFT}/{number}").decode():
                    return why
            elif (silent_s := self._silent_s(number)) > (silence_s or self._timeout_s / 2):
                machine = Machine.model_validate_json(self._store.get(f"{MACHINES}/{number}"))
                return f"machine {machine.host} (process {machine.pid}) has given no sign of life for {silent_s:.0f} s"
        return None

    def cause(self) -> str | None:
        """Return what is told of a machine whose end made ranks elsewhere fail; waits seconds for it, no longer."""
        until = time.monotonic() + _LATE_S + BEAT_S
        while self._expected and time.monotonic() < until:
            if why := self.gone(_LATE_S):
                return why
            time.sleep(_POLL_S)
        return None

    def dismiss(self, why: str) -> None:
        """Tell the machines that the run ended, and wait until they know; why: '' where all work is done."""
        if not self._expected:
            return
        self._store.set(STOP, why)
        until = time.monotonic() + _FAREWELL_S
        joined = [number for number in range(self._expected) if self._store.check([f"{MACHINES}/{number}"])]
        while time.monotonic() < until and any(self._is_there(number) for number in joined):
            time.sleep(_POLL_S)

    def _is_there(self, number: int) -> bool:
        return not self._store.check([f"{LEFT}/{number}"]) and self._silent_s(number) <= _LATE_S

    def _silent_s(self, number: int) -> float:
        now, beat = time.monotonic(), self._store.add(f"{BEAT}/{number}", 0)
        if number not in self._heard or self._heard[number][0] != beat:
            self._heard[number] = (beat, now)
        return now - self._heard[number][1]
