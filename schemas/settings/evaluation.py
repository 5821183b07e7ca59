"""How a policy is evaluated: on which questions of which data sets, when, and how it decodes."""

from __future__ import annotations

from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field

from schemas.base import Positive, Section
from schemas.names import Name
from schemas.settings.data import DataSettings, SetName, SetText, set_name
from schemas.settings.judge import JudgeSettings

ALL: Final = "all"
"""The name that stands for every set of data.test."""


class EvaluatedSet(NamedTuple):
    """A data set's split that is evaluated: how many of its questions (0: all), and whether it is a further set."""

    name: SetName
    num_questions: int
    is_further: bool = False


class FurtherSetSettings(Section):
    """A further data set that a run is evaluated on while it trains."""

    num_questions: Annotated[int, Field(ge=0)] = Field(
        default=200, description="Questions, drawn by evaluation.seed; all where there are fewer, or 0."
    )
    every: Positive = Field(default=10, description="Iterations between its evaluations, besides start and end.")


class EvaluationSettings(Section):
    """Evaluation of the plain policy on a fixed sample (paper, section 4)."""

    split: Name = Field(default="dev", description="Split of the data set.")
    num_questions: Annotated[int, Field(ge=0)] = Field(
        default=200, description="Questions, drawn by seed once for all evaluations; all where there are fewer, or 0."
    )
    every: Positive = Field(default=10, description="Iterations between evaluations; start and end are evaluated too.")
    modes: tuple[Literal["greedy", "sampled"], ...] = Field(
        default=("greedy",), min_length=1, description="Decoding: greedy (paper), or at the rollout temperature."
    )
    seed: int = Field(default=0, description="Seed of the sample of questions.")
    sets: dict[SetText, FurtherSetSettings] = Field(
        default={},
        description="Further data sets that a run is evaluated on while it trains, 'name' or 'name:split' (test), each "
        "with a size and an interval of its own; 'all' is every set of data.test that is not named (ours).",
    )
    judge: JudgeSettings = JudgeSettings()

    def main_set(self, data: DataSettings) -> EvaluatedSet:
        """Return the set that a run itself is evaluated on."""
        return EvaluatedSet(SetName(data.dataset, self.split), self.num_questions)

    def further_sets(self, data: DataSettings) -> dict[SetName, FurtherSetSettings]:
        """Return the further sets of a run that trains, in their order."""
        named = {set_name(text, "test"): plan for text, plan in self.sets.items() if text != ALL}
        of_test = dict.fromkeys(data.test_sets(self.split), self.sets[ALL]) if ALL in self.sets else {}
        return {name: plan for name, plan in {**of_test, **named}.items() if name != self.main_set(data).name}

    def sets_of_run(self, data: DataSettings, iteration: int | None = None) -> tuple[EvaluatedSet, ...]:
        """Return what a run that trains is evaluated on, the main set first: all sets, or those due in an iteration."""
        further = [
            EvaluatedSet(name, plan.num_questions, is_further=True)
            for name, plan in self.further_sets(data).items()
            if iteration is None or iteration % plan.every == 0
        ]
        main = [self.main_set(data)] if iteration is None or iteration % self.every == 0 else []
        return (*main, *further)

    def asked_sets(self, data: DataSettings) -> tuple[EvaluatedSet, ...]:
        """Return what `sdsearch evaluate` answers: the sets of data.test, in their order."""
        return tuple(EvaluatedSet(name, self.num_questions) for name in data.test_sets(self.split))
