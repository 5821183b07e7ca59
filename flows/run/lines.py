"""What is said of a run in plain lines, the same in a terminal and in the log of Prefect's flow run."""

from __future__ import annotations

import time
from collections.abc import Mapping

from flows.console.terminal import format_seconds
from flows.settings.model_folder import model_notes
from schemas.records.evaluation import EvaluationReport
from schemas.settings.root import Settings
from schemas.settings.rules import notes

# Name in an iteration's numbers, and how it is shown.
SHOWN = {
    "reward_mean": "reward",
    "em": "EM",
    "f1": "F1",
    "searches_per_rollout": "searches",
    "search_quality": "search quality",
}


class RunLines:
    """Makes the lines of one run; it knows when the run and its iterations began."""

    def __init__(self) -> None:
        self._total = 0
        self._first = 1
        self._started = self._iteration_started = time.monotonic()

    def start(self, run: str, settings: Settings, first_iteration: int) -> list[str]:
        """Return the first line of a run, and a line for each note about its settings."""
        self._total, self._first = settings.iterations, first_iteration
        self._started = self._iteration_started = time.monotonic()
        begin = f", from iteration {first_iteration}" if first_iteration > 1 else ""
        first = f"run {run}: {self._total} iterations{begin}, model {settings.model.path}"
        return [first, *(note_line(note) for note in [*notes(settings), *model_notes(settings)])]

    def iteration(self, iteration: int, numbers: Mapping[str, float]) -> str:
        """Return an iteration's figures, its seconds, and about how long the rest of the run takes."""
        now = time.monotonic()
        seconds, self._iteration_started = now - self._iteration_started, now
        left_s = (now - self._started) / max(iteration - self._first + 1, 1) * max(self._total - iteration, 0)
        return (
            f"iteration {iteration}/{self._total}  {figures_line(numbers)}  "
            f"{format_seconds(seconds)}, about {format_seconds(left_s)} left"
        )

    def end(self, run: str) -> str:
        """Return the line that says how long the run took."""
        return f"run {run} done in {format_seconds(time.monotonic() - self._started)}"


def figures_line(numbers: Mapping[str, float]) -> str:
    """Return the figures of an iteration that a person looks at first."""
    return "  ".join(f"{title} {numbers[name]:.3f}" for name, title in SHOWN.items() if name in numbers)


def note_line(sentence: str) -> str:
    """Return what a person should know as a line."""
    return f"note: {sentence}"


def evaluation_line(report: EvaluationReport) -> str:
    """Return an evaluation's figures as a line."""
    return (
        f"evaluation after {report.iteration} updates ({report.mode}, {report.num_questions} {evaluated_set(report)} "
        f"questions): EM {report.em:.3f}, F1 {report.f1:.3f}, search quality {report.search_quality:.3f}, "
        f"{report.searches_per_rollout:.2f} searches"
    )


def evaluated_set(report: EvaluationReport) -> str:
    """Return what an evaluation's set is called in a line: its split, and its name where it is a further one."""
    return f"{report.dataset} {report.split}" if report.further else report.split
