"""SIGTERM unwinds the stack as Ctrl-C does: what was started is stopped, and what was done is told to the ledger."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from flows.terminal import print_line
from schemas.commands import command


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


def resume_command(run: str, workspace: Path) -> str:
    """Return what a person types to go on with a run."""
    return command("resume", run, workspace=workspace)


def fork_command(run: str, workspace: Path) -> str:
    """Return what a person types to go on from where a run stands, with other inputs: CONFIG and NEW are theirs."""
    return command("train", "CONFIG", "--run", run, "--fork", "NEW", workspace=workspace)


@contextmanager
def terminable() -> Iterator[None]:
    """Raise Terminated in the main thread when SIGTERM arrives within the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise Terminated

    former = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@contextmanager
def resumable(console: Console, continuing: str) -> Iterator[None]:
    """End the program when a signal interrupts the block, and say which command goes on.

    The exit code is what a shell expects: 130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        with terminable():
            yield
    except KeyboardInterrupt as error:
        print_line(console, f"interrupted; go on with: {continuing}")
        number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
        raise SystemExit(128 + number) from None
