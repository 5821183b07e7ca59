"""A study: named variants of one setting over seeds, and what came of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field, model_validator

from schemas.base import Record, nearest_name
from schemas.names import NAME_RULE, Name, is_name
from schemas.records.evaluation import EvaluationMode, EvaluationReport
from schemas.records.study_figures import Estimate, Protocol, StudyFigures

Seed = Annotated[int, Field(ge=0)]


class Variant(Record):
    """One row of the study's table."""

    title: str = Field(default="", max_length=40, description="What tables and curves call it; its name when empty.")
    set: tuple[str, ...] = Field(default=(), description="`section.key=value` lines on top of the study's own.")


class Study(Record):
    """A study file: which variants are trained over which seeds."""

    name: Name = Field(description="Its folder below the workspace's studies/, and the beginning of its runs' names.")
    base: str = Field(description="Shipped settings, or the path of a settings file (relative to the study file).")
    set: tuple[str, ...] = Field(default=(), description="`section.key=value` lines for every variant.")
    baseline: str = Field(description="The variant that all others are compared with.")
    seeds: tuple[Seed, ...] = Field(min_length=1, description="Seeds; each variant is trained once with each.")
    variants: dict[str, Variant] = Field(min_length=1, description="Variants by name, in the table's order.")
    protocol: Protocol = Field(default=Protocol(), description="What is compared, and which questions are read when.")

    @model_validator(mode="after")
    def _possible(self) -> Study:
        for name in self.variants:
            if not is_name(name):
                raise ValueError(f"variant {name[:100]!r} cannot be used: {NAME_RULE}")
            if not is_name(run := self.run_of(name, max(self.seeds))):
                raise ValueError(
                    f"run '{run[:200]}' cannot be named so: {NAME_RULE}; shorten the study's name or '{name}'"
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds has a number twice ({', '.join(map(str, self.seeds))}); name each seed once")
        if self.baseline not in self.variants:
            near = nearest_name(self.baseline, list(self.variants))
            hint = f"did you mean '{near}'?" if near else f"there are: {', '.join(self.variants)}"
            raise ValueError(f"baseline '{self.baseline}' is none of the variants; {hint}")
        return self

    def run_of(self, variant: str, seed: int) -> str:
        """Return the name of a variant's run with a seed."""
        return f"{self.name}-{variant}-s{seed}"

    def title_of(self, variant: str) -> str:
        """Return what a variant is called in tables."""
        return self.variants[variant].title or variant


class RewardMean(Record):
    """The mean of a part of the reward over the rollouts of one iteration."""

    iteration: int = Field(description="Iteration of the run.")
    part: str = Field(description="Name of the part.")
    mean: float = Field(description="Mean over the iteration's rollouts.")


class RunOutcome(Record):
    """What one run of a study has measured so far."""

    run: str = Field(description="Name of the run.")
    variant: str = Field(description="Its variant.")
    seed: int = Field(description="Its seed.")
    finished: bool = Field(description="The run is done and has every evaluation after its last update.")
    updates_done: int = Field(description="Iterations whose update is done.")
    num_iterations: int = Field(description="Iterations that the study asks for.")
    only_warms_up: bool = Field(
        default=False, description="Distillation is on, but every iteration is warm-up: plain GRPO."
    )
    evaluations: tuple[EvaluationReport, ...] = Field(description="Ordered by updates done, then mode.")
    rewards: tuple[RewardMean, ...] = Field(default=(), description="Ordered by part, then iteration.")


class PairedDifference(Record):
    """A variant's EM minus the baseline's, both after the last update, paired by seed and question."""

    mean: float = Field(description="Mean over seeds and questions.")
    low: float = Field(description="Lower end of the 95 % bootstrap interval.")
    high: float = Field(description="Upper end of the 95 % bootstrap interval.")
    num_seeds: int = Field(description="Seeds with which both are finished.")
    num_questions: int = Field(description="Questions that both answered.")


class VariantSummary(Record):
    """A row of the table: a variant's finished runs, evaluated in one mode."""

    variant: str = Field(description="Name of the variant.")
    mode: EvaluationMode = Field(description="greedy or sampled.")
    num_seeds: int = Field(ge=1, description="Finished runs.")
    final_em: Estimate = Field(description="EM after the last update.")
    best_em: Estimate = Field(
        description="Highest EM of a run's evaluations after the start; chosen on the same questions, so too high."
    )
    search_quality: Estimate = Field(
        description="Share of retrieved passages that contain a golden answer, after the last update."
    )
    searches_per_rollout: Estimate = Field(description="After the last update.")
    difference: PairedDifference | None = Field(
        description="None for the baseline, and while no seed of both is finished."
    )


class StudyResults(Record):
    """Everything that a study's files and tables are made from."""

    study: Study = Field(description="The study.")
    outcomes: tuple[RunOutcome, ...] = Field(description="Variants in the study's order, seeds in theirs.")
    summaries: tuple[VariantSummary, ...] = Field(description="Modes as evaluated, variants in the study's order.")
    figures: tuple[StudyFigures, ...] = Field(
        default=(), description="On the questions for choosing; then, once they were read, on those for reporting."
    )

    def title_of(self, variant: str) -> str:
        """Return what a variant is called in tables and curves, and that it is plain GRPO where it never distils."""
        plain = any(outcome.only_warms_up for outcome in self.outcomes if outcome.variant == variant)
        return f"{self.study.title_of(variant)}{' (all warm-up: plain GRPO)' if plain else ''}"


class HeldOutReading(Record):
    """One reading of the questions that no choice may have seen; kept for good."""

    read_at: datetime = Field(description="When it was asked for, UTC.")
    split: str = Field(description="The split that was read.")
    num_questions: int = Field(description="Questions that were asked for; 0: all.")
    runs: tuple[str, ...] = Field(description="Runs whose policies answered them.")
    code_version: str = Field(description="Version of the program.")


class HeldOutReadings(Record):
    """All readings of a study's held-out questions, the earliest first."""

    readings: tuple[HeldOutReading, ...] = Field(description="The readings.")
