"""What a person sees of a run while it works, and what stands at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

from rich.console import Console
from rich.table import Table

from flows.console.bars import Bars, takes_bars
from flows.console.terminal import make_table, print_line
from flows.run.lines import RunLines, evaluated_set, evaluation_line, figures_line, note_line
from flows.run.reference import find_reference, reference_table
from schemas.commands import command
from schemas.records.evaluation import EvaluationReport
from schemas.records.ledger import StageKey, StageName, StageRecord
from schemas.records.rollout import Turn
from schemas.settings.root import Settings
from sdsearch.sampling.ports import NoListener

_FIGURES = {
    "em": "EM",
    "f1": "F1",
    "search_quality": "search quality",
    "searches_per_rollout": "searches per rollout",
}
UNITS: Final[Mapping[StageName, str]] = {
    "sample": "questions",
    "update": "steps",
    "evaluate": "answers",
    "judge": "verdicts",
}
"""What the progress of a stage counts; the other stages are one piece of work."""
_ONE_SEED = (
    "One run with one seed: between seeds, EM differs by about as much as between these methods. Several seeds, with "
    "intervals: sdsearch study study_mini"
)


class Reporter(Protocol):
    """Is told what a run does; iterations are counted from 1.

    stage_progress: so many pieces of the stage are kept. stage_pace: so many are done, kept or not, and the policy has
    sampled, or learnt from, so many tokens for them.
    """

    def run_started(self, run: str, settings: Settings, first_iteration: int) -> None: ...

    def noted(self, sentence: str) -> None: ...

    def stage_started(self, key: StageKey) -> None: ...

    def stage_progress(self, done: int, total: int) -> None: ...

    def stage_pace(self, done: int, total: int, num_tokens: int) -> None: ...

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

    def stage_pace(self, done: int, total: int, num_tokens: int) -> None:
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
        self._bars: Bars | None = None
        self._lines = RunLines()
        self._settings: Settings | None = None

    def __enter__(self) -> RichReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_bars()

    def run_started(self, run: str, settings: Settings, first_iteration: int) -> None:
        """Say what begins, and open the bars."""
        self._settings = settings
        for line in self._lines.start(run, settings, first_iteration):
            print_line(self._console, line)
        if takes_bars(self._console):
            self._bars = Bars(self._console)
            self._bars.open_whole("iteration", settings.iterations, first_iteration - 1)

    def noted(self, sentence: str) -> None:
        """Print what a person should know."""
        print_line(self._console, note_line(sentence))

    def stage_started(self, key: StageKey) -> None:
        """Show the stage that works now."""
        if self._bars is not None:
            self._bars.begin_part(key.stage, UNITS.get(key.stage, ""))

    def stage_progress(self, done: int, total: int) -> None:
        """Show how far the stage is."""
        self.stage_pace(done, total, 0)

    def stage_pace(self, done: int, total: int, num_tokens: int) -> None:
        """Show how far the stage is, and its tokens a second."""
        if self._bars is not None:
            self._bars.move_part(done, total, num_tokens)

    def stage_done(self, record: StageRecord, skipped: bool) -> None:
        """Close the stage's bar."""
        if self._bars is not None:
            self._bars.end_part()

    def iteration_done(self, iteration: int, numbers: dict[str, float]) -> None:
        """Move the bar on, or print the iteration's line."""
        if self._bars is not None:
            self._bars.move_whole(iteration, figures_line(numbers))
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
        """Print the figures before and after, beside a reference where there is one, and what to try next."""
        self._stop_bars()
        self._console.print(before_and_after(self._reports))
        self._print_reference()
        print_line(self._console, self._lines.end(run))
        if self._database is None:
            return
        print_line(self._console, f"database: {self._database}\nnext:")
        queries = (("sql", "--name", name, "--run", run) for name in ("best_queries", "mixed_groups"))
        for words in (("show", run), *queries):
            print_line(self._console, f"  {command(*words, workspace=self._database.parent)}")

    def _print_reference(self) -> None:
        """Print a stored curve of another method beside the run's own, when only the method differs."""
        if self._settings is None or self._database is None:
            return
        curve = find_reference(self._settings)
        table = curve and reference_table(curve, self._settings.seed, self._reports)
        if table:
            self._console.print(table)
            print_line(self._console, _ONE_SEED)

    def _stop_bars(self) -> None:
        if self._bars is not None:
            self._bars.close()
            self._bars = None


class RolloutProgress(NoListener):
    """Listens to a stage's rollouts and tells its reporter how many questions are through, and the tokens sampled."""

    def __init__(self, reporter: Reporter, total: int, group_size: int) -> None:
        self._reporter = reporter
        self._total = total
        self._group_size = group_size
        self._num_done = self._num_tokens = 0
        self._ended: Counter[str] = Counter()  # Rollouts by group.

    def grow(self, num_questions: int) -> None:
        """Count so many questions more."""
        self._total += num_questions

    def kept(self, num_done: int) -> None:
        """Tell that so many questions are through and kept."""
        self._num_done = num_done
        self._ended.clear()
        self._reporter.stage_progress(num_done, self._total)

    def others_kept(self, num_left: int) -> None:
        """Tell how many questions are left when other processes answer them."""
        self.kept(self._total - num_left)

    def turn_ended(self, rollout_id: str, turn: Turn, *, ends_rollout: bool) -> None:
        """Count the turn's tokens, and the question where all its rollouts have ended."""
        self._num_tokens += len(turn.generation.token_ids)
        if ends_rollout:
            group = rollout_id.rpartition("/")[0]
            self._ended[group] += 1
            self._num_done += self._ended[group] == self._group_size
        self._reporter.stage_pace(self._num_done, self._total, self._num_tokens)


def before_and_after(reports: Iterable[EvaluationReport]) -> Table:
    """Return the table of the first and the last evaluation of each set and mode."""
    series: dict[tuple[str, str], dict[int, EvaluationReport]] = {}
    for report in sorted(reports, key=lambda report: report.further):
        series.setdefault((evaluated_set(report), report.mode), {})[report.iteration] = report
    rows = []
    for (evaluated, mode), of_series in series.items():
        first, last = of_series[min(of_series)], of_series[max(of_series)]
        rows += [
            (f"{evaluated} {title}, {mode}", f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
            for name, title in _FIGURES.items()
            for before, after in [(_figure(first, name), _figure(last, name))]
        ]
    return make_table(("figure", "before", "after", "change"), rows)


def _figure(report: EvaluationReport, name: str) -> float:
    return float(getattr(report, name))
