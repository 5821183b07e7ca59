"""The program on a terminal: what it shows, and what a person types."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyte

_DEADLINE_S = 120.0
_REACTION_S = 0.5


class Shown(NamedTuple):
    """What a terminal got, and the program's exit code."""

    text: str
    code: int


def on_a_terminal(
    arguments: Sequence[str], typed: Sequence[tuple[str, str]] = (), environment: Mapping[str, str] | None = None
) -> Shown:
    """Run `sdsearch` on a terminal of 200 columns; each (shown, keys) types the keys once the text has been shown."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update({"TERM": "xterm-256color", "COLUMNS": "200", "LINES": "50", **(environment or {})})
        os.execv(sys.executable, [sys.executable, "-m", "flows.app", *arguments])
    got, seen, waiting = b"", 0, list(typed)
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline:
        ready, _, _ = select.select([terminal], [], [], 0.1)
        try:
            content = os.read(terminal, 65536) if ready else b""
        except OSError:  # Linux says so when the other side is closed.
            break
        if ready and not content:
            break
        got += content
        if waiting and (place := got.find(waiting[0][0].encode(), seen)) >= 0:
            seen = place + len(waiting[0][0])
            time.sleep(_REACTION_S)  # readline shows its prompt a moment before it listens to signals.
            os.write(terminal, waiting.pop(0)[1].encode())
    else:
        os.kill(process, 9)
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    return Shown(got.decode("utf-8", "replace"), os.waitstatus_to_exitcode(status))


class Screen:
    """A terminal as a person sees it: what stands on it after all movements of the cursor, and what scrolled away."""

    def __init__(self, columns: int, rows: int = 50) -> None:
        self._screen = pyte.HistoryScreen(columns, rows, history=100_000)
        self._stream = pyte.ByteStream(self._screen)

    def fed(self, content: bytes) -> Screen:
        """Show what a program wrote."""
        self._stream.feed(content)
        return self

    @property
    def lines(self) -> list[str]:
        """The lines from the first to the last that is not empty."""
        width = self._screen.columns
        gone = ("".join(row[column].data for column in range(width)) for row in self._screen.history.top)
        lines = [line.rstrip() for line in [*gone, *self._screen.display]]
        while lines and not lines[-1]:
            lines.pop()
        return lines
