"""Standard output and error: what happens where their reader has gone, and where they cannot hold a character.

A command that works on something (trains, evaluates, builds) goes on without being read; one that only prints ends.
The same holds for a terminal that was closed and for a file on a full disk.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn, TextIO

from flows.console.errors import UserError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_NAMES = ("stdout", "stderr")
_STDERR = 2
_stops_unread = False


def prepare_streams() -> None:
    """Replace the process's stdout and stderr by streams that raise neither over a character nor over their reader.

    A character that the encoding lacks is written as its escape. A stream that was closed before the start, as by
    `>&-`, swallows what is written.
    """
    for name in _NAMES:
        stream: TextIO | None = getattr(sys, name)
        setattr(sys, name, _nowhere() if stream is None else _lasting(stream))


def stop_when_unread() -> None:
    """Have this command, which only prints, end where nobody reads it: quietly after a closed pipe, as `cat` does."""
    global _stops_unread
    _stops_unread = True


class _Descriptor(io.FileIO):
    """A file descriptor that leads nowhere once its reader has gone."""

    def write(self, content: ReadableBuffer, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            _lead_nowhere(self.fileno())
            if _stops_unread:
                _stop(error)
            _say_once(self.fileno(), error)
            return memoryview(content).nbytes


def _nowhere() -> TextIO:
    """Return a stream that swallows everything, in the place of the descriptor that is missing."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    return io.TextIOWrapper(io.BufferedWriter(_Descriptor(descriptor, "w")), encoding="utf-8")


def _lasting(stream: TextIO) -> TextIO:
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return stream  # No stream of the system's, such as a notebook's.
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(descriptor, "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=bool(getattr(stream, "line_buffering", False)),
        write_through=bool(getattr(stream, "write_through", False)),
    )


def _lead_nowhere(descriptor: int) -> None:
    """Point the descriptor at the null device, for this process, its libraries and the processes that it starts."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _stop(error: OSError) -> NoReturn:
    if isinstance(error, BrokenPipeError):
        raise SystemExit(128 + signal.SIGPIPE) from None
    raise UserError(f"the output cannot be written: {error.strerror}; send it to another place") from error


def _say_once(descriptor: int, error: OSError) -> None:
    """Say on stderr why stdout is silent from now on; a reader who left knows.

    Past Python's stream, which bars on a terminal lead back to stdout, and which may be in the middle of a write.
    """
    if descriptor != _STDERR and not isinstance(error, BrokenPipeError):
        line = f"warning: the output cannot be written ({error.strerror}); the work continues without it\n"
        with suppress(OSError):
            os.write(_STDERR, line.encode("ascii", "backslashreplace"))
