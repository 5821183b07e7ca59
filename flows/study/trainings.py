"""How the trainings of a study follow each other: one after another in this process, or side by side in their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from flows.console.errors import PEOPLES_ERRORS
from flows.study.plan import PlannedRun
from schemas.records.study import Study

Train = Callable[[PlannedRun], object]
Announce = Callable[[PlannedRun, int, bool], None]
"""Is told of each run before it starts: the run, its place from 1, and whether it is finished already."""


class RunFailure(NamedTuple):
    """A training of a study that ended without being done, and why."""

    run: str
    reason: str


class Trainings(Protocol):
    """Trains the runs of a study that are not finished."""

    def carry_out(self, planned: Sequence[PlannedRun], finished: Collection[str]) -> list[RunFailure]:
        """Train all but the finished ones; one that fails is told, and the others go on."""
        ...


class OneByOne:
    """Trains in this process, in the study's order.

    Errors for people fail the run that they belong to; all others end the study.
    """

    def __init__(self, train: Train, announce: Announce, tell: Callable[[str], None] = lambda line: None) -> None:
        self._train = train
        self._announce = announce
        self._tell = tell

    def carry_out(self, planned: Sequence[PlannedRun], finished: Collection[str]) -> list[RunFailure]:
        """As of `Trainings`."""
        failures: list[RunFailure] = []
        for number, plan in enumerate(planned, 1):
            self._announce(plan, number, plan.run in finished)
            if plan.run in finished:
                continue
            try:
                self._train(plan)
            except PEOPLES_ERRORS as error:
                failures.append(RunFailure(plan.run, str(error)))
                self._tell(f"run {plan.run} failed: {error}")
        return failures


def title_line(study: Study, plan: PlannedRun, number: int) -> str:
    """Return the line that says which of a study's runs it is."""
    num_runs = len(study.variants) * len(study.seeds)
    return f"study run {number}/{num_runs}: {study.title_of(plan.variant)}, seed {plan.seed}"
