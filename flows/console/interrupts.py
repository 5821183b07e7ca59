"""Signals: SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that what was started is stopped and the ledger told.

A signal that is ignored when the program starts stays ignored: a shell does so for its background jobs (SIGINT), and
nohup for what shall outlive the terminal (SIGHUP).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from flows.console.terminal import print_line
from schemas.commands import command

# What the commands that can be resumed say of signals in their help; the tests hold them to it.
SIGNALS_HELP = (
    "Signals: Ctrl-C (SIGINT), SIGTERM and a closed terminal (SIGHUP) let the current write finish, mark the run as "
    "interrupted, print the command that resumes it, and exit with 130, 143 or 129. A second signal ends at once; "
    "finished work is kept. After kill -9 the run is shown as 'dead; resume'. Signals that are ignored at the start "
    "(nohup, a script's background job) stay ignored. A closed pipe stops the output, not the work."
)
_ENDING = (signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived, or SIGHUP: the terminal was closed."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


def is_ignored(number: int) -> bool:
    """True when the signal does nothing in this process, as whoever started it wanted."""
    return signal.getsignal(number) is signal.SIG_IGN


def resume_command(run: str, workspace: Path, num_workers: int = 1) -> str:
    """Return what a person types to go on with a run, in as many processes."""
    workers = ("--workers", str(num_workers)) if num_workers > 1 else ()
    return command("resume", run, *workers, workspace=workspace)


def fork_command(run: str, workspace: Path) -> str:
    """Return what a person types to go on from where a run stands, with other inputs: CONFIG and NEW are theirs."""
    return command("train", "CONFIG", "--run", run, "--fork", "NEW", workspace=workspace)


@contextmanager
def terminable() -> Iterator[None]:
    """Raise Terminated in the main thread when SIGTERM or SIGHUP arrives within the block, unless it is ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    former = {number: signal.signal(number, leave) for number in _ENDING if not is_ignored(number)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def resumable(console: Console, command: str) -> Iterator[None]:
    """End the program when a signal interrupts the block, as `interruptible` does, and say which command goes on."""
    with interruptible(console, f"interrupted; continue with: {command}"):
        yield


@contextmanager
def interruptible(console: Console, said: str) -> Iterator[None]:
    """End the program when a signal interrupts the block, and say so.

    The exit code is what a shell expects: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """
    try:
        with terminable():
            yield
    except KeyboardInterrupt as error:
        print_line(console, said)
        number = error.number if isinstance(error, Terminated) else signal.SIGINT
        raise SystemExit(128 + number) from None
