"""Ctrl-C, SIGTERM and SIGHUP wait for a write to end: it is finished, then the signal does what it would have done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_HELD_BACK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Hold SIGINT, SIGTERM and SIGHUP back until the block is over; keep it to moments.

    The block needs it for tidiness, never for safety: what it writes must bear kill -9 too. Outside the main thread,
    where Python runs no signal handlers, nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)

    # None stands for a handler that was not set from Python and could not be put back.
    former: dict[int, Any] = {number: signal.getsignal(number) for number in _HELD_BACK}
    former = {number: handler for number, handler in former.items() if handler is not None}
    for number in former:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])
