"""Signals around writes and queries.

Ctrl-C, SIGTERM and SIGHUP wait for a write to end: it is finished, then the signal does what it would have done. They
stop a query, and what the signal's handler raised is what the caller gets.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
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

    try:
        with _handled_by(hold, _handlers()):
            yield
    finally:
        if held:
            signal.raise_signal(held[0])


@contextmanager
def handler_errors_kept() -> Iterator[None]:
    """Raise what a handler of SIGINT, SIGTERM or SIGHUP raised inside the block, whatever became of it there.

    DuckDB runs Python's signal handlers during a query, drops the handler's exception and raises
    RuntimeError("Query interrupted") in its place: Ctrl-C would look like a failed query. Python runs
    no signal handlers outside the main thread: nothing is to be kept there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: handler for number, handler in _handlers().items() if callable(handler)}
    raised: list[BaseException] = []

    def keep(number: int, frame: FrameType | None) -> None:
        try:
            former[number](number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    try:
        with _handled_by(keep, former):
            yield
    except Exception as error:
        if raised:
            raise raised[0] from error
        raise
    if raised:
        raise raised[0]


def _handlers() -> dict[int, Any]:
    """Return the handlers in force; one that was not set from Python (None) could not be put back and is left out."""
    handlers = {number: signal.getsignal(number) for number in _HELD_BACK}
    return {number: handler for number, handler in handlers.items() if handler is not None}


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None], former: dict[int, Any]) -> Iterator[None]:
    """Let `handler` take the signals of `former` until the block is over."""
    for number in former:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)
