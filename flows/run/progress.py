"""What a person sees of a run while it works, and what stands at its end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from flows.console.terminal import make_table, print_line
from flows.run.lines import RunLines, evaluation_line, figures_line, note_line
from schemas.commands import command
from schemas.records.evaluation import EvaluationReport
from schemas.records.ledger import StageKey, StageRecord
from schemas.settings.root import Settings

_FIGURES = {
    "em": "EM",
    "f1": "F1",
    "search_quality": "search quality",
    "searches_per_rollout": "searches per rollout",
}


class Reporter(Protocol):
    """Is told what a run does; iterations are counted from 1."""

    def run_started(self, run: str, settings: Settings, first_iteration: int) -> None: ...

    def noted(self, sentence: str) -> None: ...

    def stage_started(self, key: StageKey) -> None: ...

    def stage_progress(self, done: int, total: int) -> None: ...

    def stage_done(self, record: StageRecord, skipped: bool) -> None: ...

    def iteration_done(self, iteration: int, numbers: dict[str, float]) -> None: ...

    def evaluated(self, report: EvaluationReport) -> None: ...

    def warned(self, text: str) -> None: ...

    def run_done(self, run: str) -> None: ...


class SilentReporter:
    """A `Reporter` that says nothing."""

    def run_started(self, run: str, settings: Settings, first_iteration: int) -> None:
        """Say nothing."""

    def noted(self, sentence: str) -> None:
        """Say nothing."""

    def stage_started(self, key: StageKey) -> None:
        """Say nothing."""

    def stage_progress(self, done: int, total: int) -> None:
        """Say nothing."""

    def stage_done(self, record: StageRecord, skipped: bool) -> None:
        """Say nothing."""

    def iteration_done(self, iteration: int, numbers: dict[str, float]) -> None:
        """Say nothing."""

    def evaluated(self, report: EvaluationReport) -> None:
        """Say nothing."""

    def warned(self, text: str) -> None:
        """Say nothing."""

    def run_done(self, run: str) -> None:
        """Say nothing."""


class RichReporter:
    """A `Reporter` for a terminal: bars with the time left; one plain line an iteration where output is no terminal.

    `database` is named at the end, with what to try next; neither is said when it is None. As a context manager it
    gives the terminal back, also after an error.
    """

    def __init__(self, database: Path | None, console: Console | None = None) -> None:
        self._database = database
        self._console = console or Console()
        self._reports: list[EvaluationReport] = []
        self._bars: Progress | None = None
        self._iterations: TaskID | None = None
        self._stage: TaskID | None = None
        self._total = 0
        self._lines = RunLines()

    def __enter__(self) -> RichReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_bars()

    def run_started(self, run: str, settings: Settings, first_iteration: int) -> None:
        """Say what begins, and open the bars."""
        self._total = settings.iterations
        for line in self._lines.start(run, settings, first_iteration):
            print_line(self._console, line)
        if self._console.is_terminal:
            self._open_bars(first_iteration - 1)

    def noted(self, sentence: str) -> None:
        """Print what a person should know."""
        print_line(self._console, note_line(sentence))

    def stage_started(self, key: StageKey) -> None:
        """Show the stage that works now."""
        if self._bars is not None and self._stage is not None:
            self._bars.reset(self._stage, total=None, description=key.stage, visible=True)

    def stage_progress(self, done: int, total: int) -> None:
        """Show how far the stage is."""
        if self._bars is not None and self._stage is not None:
            self._bars.update(self._stage, completed=done, total=total)

    def stage_done(self, record: StageRecord, skipped: bool) -> None:
        """Close the stage's bar."""
        if self._bars is not None and self._stage is not None:
            self._bars.update(self._stage, visible=False)

    def iteration_done(self, iteration: int, numbers: dict[str, float]) -> None:
        """Move the bar on, or print the iteration's line."""
        if self._bars is not None and self._iterations is not None:
            self._bars.update(self._iterations, completed=iteration, figures=figures_line(numbers))
            return
        print_line(self._console, self._lines.iteration(iteration, numbers))

    def evaluated(self, report: EvaluationReport) -> None:
        """Print an evaluation's line."""
        self._reports.append(report)
        print_line(self._console, evaluation_line(report))

    def warned(self, text: str) -> None:
        """Print why nothing can be learnt."""
        print_line(self._console, f"warning: {text}")

    def run_done(self, run: str) -> None:
        """Print the figures before and after, where the database is, and what to try next."""
        self._stop_bars()
        self._console.print(before_and_after(self._reports))
        print_line(self._console, self._lines.end(run))
        if self._database is None:
            return
        print_line(self._console, f"database: {self._database}\nnext:")
        queries = (("sql", "--name", name, "--run", run) for name in ("best_queries", "mixed_groups"))
        for words in (("show", run), *queries):
            print_line(self._console, f"  {command(*words, workspace=self._database.parent)}")

    def _open_bars(self, completed: int) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            # An iteration may take minutes: the pace is that of the last hour, not of half a minute.
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            speed_estimate_period=3600.0,
        )
        self._iterations = self._bars.add_task("iteration", total=self._total, completed=completed, figures="")
        self._stage = self._bars.add_task("stage", total=None, visible=False, figures="")
        self._bars.start()

    def _stop_bars(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def before_and_after(reports: Iterable[EvaluationReport]) -> Table:
    """Return the table of the first and the last evaluation of each mode."""
    by_mode: dict[str, dict[int, EvaluationReport]] = {}
    for report in reports:
        by_mode.setdefault(report.mode, {})[report.iteration] = report
    rows = []
    for mode, of_mode in by_mode.items():
        first, last = of_mode[min(of_mode)], of_mode[max(of_mode)]
        rows += [
            (f"{first.split} {title}, {mode}", f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
            for name, title in _FIGURES.items()
            for before, after in [(_figure(first, name), _figure(last, name))]
        ]
    return make_table(("figure", "before", "after", "change"), rows)


def _figure(report: EvaluationReport, name: str) -> float:
    return float(getattr(report, name))
