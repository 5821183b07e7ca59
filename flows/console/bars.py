"""Live bars at the foot of a terminal; whatever else is printed meanwhile, logs too, stands above them."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from flows.console.terminal import format_seconds, printable

_WIDTH: Final = 28


def takes_bars(console: Console) -> bool:
    """True for a terminal that can move its cursor, where nobody asked for plain output with NO_COLOR."""
    return console.is_terminal and not console.is_dumb_terminal and not console.no_color


class Bars:
    """A bar for a whole, where one is opened, and below it one for its part that is under way.

    `clock` gives seconds. They stay until `close`, which gives the terminal back.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._whole: TaskID | None = None
        self._part: TaskID | None = None
        self._whole_left, self._part_left = _TimeLeft(clock(), 0), _TimeLeft(clock(), 0)
        self._logs = LogsAbove(console)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=_WIDTH),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            _TimeLeftColumn(clock),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
        )
        self._progress.start()
        self._logs.begin()

    def open_whole(self, name: str, total: int, completed: int) -> None:
        """Show a bar of the whole, of which so much is done."""
        self._whole_left = left = _TimeLeft(self._clock(), completed)
        self._whole = self._progress.add_task(name, total=total, completed=completed, unit="", figures="", left=left)

    def move_whole(self, completed: int, figures: str) -> None:
        """Show how much of the whole is done, and its last figures."""
        assert self._whole is not None, "the bar is open"
        self._whole_left.reach(completed, self._clock())
        self._progress.update(self._whole, completed=completed, figures=printable(figures))

    def begin_part(self, name: str, unit: str) -> None:
        """Show a bar of the part that begins, counted in `unit`."""
        self.end_part()
        self._part_left = left = _TimeLeft(self._clock(), 0)
        self._part = self._progress.add_task(name, total=None, unit=unit, figures="", left=left)

    def move_part(self, completed: int, total: int, num_tokens: int) -> None:
        """Show how much of the part is done, and the tokens a second since it began.

        What is done before there are tokens was found done: it tells nothing of the pace.
        """
        assert self._part is not None, "the bar is open"
        now = self._clock()
        if num_tokens:
            self._part_left.reach(completed, now)
        elif not self._part_left.has_moved:
            self._part_left.first = completed
        self._progress.update(self._part, completed=completed, total=total)
        seconds = now - self._part_left.began
        if num_tokens and seconds > 0:
            self._progress.update(self._part, figures=f"{num_tokens / seconds:,.0f} tokens/s")

    def end_part(self) -> None:
        """Take the part's bar away."""
        if self._part is not None:
            self._progress.remove_task(self._part)
            self._part = None

    def close(self) -> None:
        """Give the terminal back; the bars stay as they are now."""
        self._logs.end()
        self._progress.stop()


@dataclass
class _TimeLeft:
    """How long the rest of some work takes at its pace so far; moments in seconds of one clock."""

    began: float
    first: int  # What was done when it began.
    reached: float = 0.0
    done: int = 0
    has_moved: bool = False

    def reach(self, done: int, now: float) -> None:
        """Note that so much is done by now."""
        if not self.has_moved or done != self.done:
            self.done, self.reached, self.has_moved = done, now, True

    def seconds(self, total: float | None, now: float) -> float | None:
        """Return the seconds left, None where no pace is known."""
        made = self.done - self.first
        if total is None or not self.has_moved or made <= 0:
            return None
        return max((self.reached - self.began) / made * (total - self.done) - (now - self.reached), 0.0)


class _TimeLeftColumn(ProgressColumn):
    """The time left of a bar."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock

    def render(self, task: Task) -> Text:
        seconds = task.fields["left"].seconds(task.total, self._clock())
        return Text("" if seconds is None else f"about {format_seconds(seconds)} left", "progress.remaining")


class LogsAbove:
    """Has the handlers of logs that write to a terminal write above the bars of `console`.

    rich leads sys.stdout and sys.stderr there itself; handlers, those of Prefect for example, hold the streams of their
    beginning, and their lines would break the bars.
    """

    def __init__(self, console: Console) -> None:
        self._above = _AboveBars(console)
        self._undo: list[Callable[[], object]] = []

    def begin(self) -> None:
        """Lead the handlers that there are now."""
        above: Any = self._above
        for handler in _handlers():
            # A handler without a stream of its own asks for sys.stderr each time.
            if isinstance(handler, logging.StreamHandler) and _is_terminal(vars(handler).get("stream")):
                self._undo.append(partial(handler.setStream, handler.setStream(above)))
            own = getattr(handler, "console", None)  # Prefect's and rich's handlers print to a console of their own.
            if isinstance(own, Console) and own.is_terminal:
                self._undo.append(partial(setattr, own, "file", own.file))
                own.file = above

    def end(self) -> None:
        """Give the handlers their streams back."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()


class _AboveBars(io.TextIOBase):
    """A stream whose lines a console prints, above its bars where it shows some."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rest = ""

    def write(self, text: str, /) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._console.print(Text.from_ansi(line), soft_wrap=True)
        return len(text)

    def isatty(self) -> bool:
        return True


def _handlers() -> Iterator[logging.Handler]:
    """Yield the handlers of all loggers, each once."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    yield from {
        handler: None for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers
    }


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream is not None and stream.isatty())
    except (AttributeError, ValueError):  # Anything that can be written to, and what was closed since.
        return False
