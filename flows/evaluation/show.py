"""What an evaluation prints: a bar while it works, a row of figures for each data set at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from rich.console import Console

from flows.console.bars import Bars, takes_bars
from flows.console.terminal import format_seconds, make_table, print_line
from flows.evaluation.plan import EvaluationPlan
from flows.run.progress import UNITS, SilentReporter
from schemas.base import hash_json
from schemas.records.evaluation import HASH_CHARS, EvaluationAnswer, EvaluationConditions, EvaluationReport
from schemas.records.ledger import StageKey, StageName
from sdsearch.evaluation.intervals import Interval, bootstrap_mean

_SAY_EVERY_S = 30.0


_COLUMNS = ("data set", "split", "questions", "EM", "95 %", "F1", "cover EM", "searches", "search quality", "valid")


class SetResult(NamedTuple):
    """One data set's figures, its answers, and what they were given under."""

    report: EvaluationReport
    answers: list[EvaluationAnswer]
    conditions: EvaluationConditions | None  # None where an earlier version evaluated.
    answerable: list[bool] | None = None  # Of each answer's question; None where nobody has counted that.
    judged_right: float | None = None  # None where there is no judge.

    @property
    def em_answerable(self) -> float | None:
        """Mean exact match of the questions that the corpus can answer; None where that is not known, or of none."""
        flags = self.answerable or []
        ems = [answer.em for answer, can_be in zip(self.answers, flags, strict=bool(flags)) if can_be]
        return sum(ems) / len(ems) if ems else None


class _Further(NamedTuple):
    """A column that is shown where it is known."""

    name: str
    of: Callable[[SetResult], float | None]


_FURTHER: Final = (
    _Further("EM answerable", lambda result: result.em_answerable),
    _Further("judge", lambda result: result.judged_right),
)


class EvaluationReporter(SilentReporter):
    """Shows a bar of answered questions; a line now and then where output is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = None
        self._started = self._said = time.monotonic()
        self._first: int | None = None
        self._judges = False

    def stage_started(self, key: StageKey) -> None:
        """Begin the bar of what is counted next: answers, or verdicts on them."""
        self._judges = key.stage == "judge"
        self._started, self._first = time.monotonic(), None
        if self._bars is not None:
            self._bars.begin_part(key.stage, UNITS[key.stage])

    def stage_progress(self, done: int, total: int) -> None:
        """Show how many questions are answered; batches that an earlier attempt finished count at once."""
        if takes_bars(self._console):
            self._move_bar(done, total, 0)
        elif done < total and time.monotonic() - self._said >= _SAY_EVERY_S:
            self._said = time.monotonic()
            pace = (done - (self._first or 0)) / (self._said - self._started)
            left = format_seconds((total - done) / pace) if pace > 0 else "?"
            what = "answers judged" if self._judges else "questions answered"
            print_line(self._console, f"{done} of {total} {what}, about {left} left")
        self._first = done if self._first is None else self._first

    def warned(self, text: str) -> None:
        """Print what goes wrong beside the evaluation."""
        print_line(self._console, f"warning: {text}")

    def stage_pace(self, done: int, total: int, num_tokens: int) -> None:
        """Show the answers and the tokens a second on a terminal."""
        if takes_bars(self._console):
            self._move_bar(done, total, num_tokens)

    def close(self) -> None:
        """Give the terminal back."""
        if self._bars is not None:
            self._bars.close()

    def _move_bar(self, done: int, total: int, num_tokens: int) -> None:
        if self._bars is None:
            self._bars = Bars(self._console)
            stage: StageName = "judge" if self._judges else "evaluate"
            self._bars.begin_part(stage, UNITS[stage])
        self._bars.move_part(done, total, num_tokens)


def print_results(plan: EvaluationPlan, results: Sequence[SetResult], console: Console) -> None:
    """Print a row a data set, and their unweighted mean, as the paper has it."""
    (mode,) = plan.settings.evaluation.modes
    num_questions = sum(result.report.num_questions for result in results)
    print_line(console, f"{plan.title}: {num_questions} questions, {mode} ({plan.run})")
    shown = [(r.report.dataset, r.report.split, [r]) for r in results]
    if len(results) > 1:
        shown.append((f"mean of {len(results)}", "", list(results)))
    further = [column for column in _FURTHER if any(column.of(result) is not None for result in results)]
    rows = [
        (
            dataset,
            split,
            sum(result.report.num_questions for result in of_row),
            *_figures([result.report for result in of_row], _interval([result.answers for result in of_row], plan)),
            *(_mean_text([column.of(result) for result in of_row]) for column in further),
        )
        for dataset, split, of_row in shown
    ]
    console.print(make_table((*_COLUMNS, *(column.name for column in further)), rows))
    known = [result.conditions for result in results if result.conditions is not None]
    for line in dict.fromkeys(conditions.told for conditions in known):
        print_line(console, line)
    judge = plan.settings.evaluation.judge
    if any(result.judged_right is not None for result in results):
        asked = hash_json(judge.prompt)[:HASH_CHARS]
        print_line(console, f"judge: the share of answers that {judge.model} calls right, prompt {asked}")


def _figures(reports: Sequence[EvaluationReport], interval: Interval) -> tuple[object, ...]:
    """Return the table's figures: means over data sets, each of which counts the same."""
    names = ("em", "f1", "cover_em", "searches_per_rollout", "search_quality", "valid_share")
    em, *others = (_mean_text([getattr(report, name) for report in reports]) for name in names)
    return (em, f"{interval.low:.3f} … {interval.high:.3f}", *others)


def _mean_text(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if len(known) == len(values) else "-"


def _interval(answers: Sequence[Sequence[EvaluationAnswer]], plan: EvaluationPlan) -> Interval:
    ems = [np.array([answer.em for answer in of_set]) for of_set in answers]
    return bootstrap_mean(ems, seed=plan.settings.evaluation.seed)
