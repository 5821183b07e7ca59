"""What a study's variants are compared by: figures at given updates and of whole learning curves, and their cost."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from schemas.base import Record
from schemas.records.evaluation import EvaluationMode

PointFigure = Literal["em", "found", "read", "f1", "search_quality", "evidence", "searches"]
CurveFigure = Literal["em_area", "updates_until"]
FigureName = Literal[PointFigure, CurveFigure]

FIGURES: dict[FigureName, str] = {
    "em": "EM",
    "found": "found",
    "read": "read",
    "f1": "F1",
    "search_quality": "search quality",
    "evidence": "all evidence",
    "searches": "searches",
    "em_area": "area under EM",
    "updates_until": "updates until",
}
"""What each figure is called in tables."""


class PrimaryFigure(Record):
    """A comparison that was chosen before the results: only these are corrected for their number and decide."""

    figure: FigureName = Field(description="The figure.")
    mode: EvaluationMode = Field(description="greedy or sampled.")
    updates: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="After which updates; none for a figure of the whole curve."
    )

    @model_validator(mode="after")
    def _possible(self) -> PrimaryFigure:
        if (self.figure in get_args(CurveFigure)) != (self.updates is None):
            what = "is of the whole curve and takes no updates" if self.updates is not None else "needs updates"
            raise ValueError(f"figure '{self.figure}' {what}")
        return self


class Protocol(Record):
    """Which questions a study may look at when, and what it compares on them."""

    updates: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="Numbers of updates at which variants are compared; those of all evaluations if empty."
    )
    threshold: float = Field(default=0.6, gt=0, le=1, description="EM that 'updates_until' waits for.")
    primary: tuple[PrimaryFigure, ...] = Field(
        default=(), description="The comparisons that decide; the area under EM in every mode if empty."
    )
    report_split: str = Field(
        default="test", description="Questions that are read once the choices are made, by --report-test."
    )
    report_questions: int = Field(default=400, ge=0, description="How many of them, drawn by seed; 0: all.")

    @model_validator(mode="after")
    def _ordered(self) -> Protocol:
        if list(self.updates) != sorted(set(self.updates)):
            raise ValueError(
                f"updates must rise ({', '.join(map(str, self.updates))}); name each number once, in order"
            )
        return self


class Estimate(Record):
    """A figure over seeds."""

    mean: float = Field(description="Mean over seeds.")
    std: float | None = Field(description="Unbiased standard deviation over seeds; None for a single seed.")


class FigureDifference(Record):
    """A variant's figure minus the baseline's, paired by seed and question."""

    mean: float = Field(description="Mean over seeds.")
    low: float = Field(description="Lower end of the 95 % bootstrap interval over seeds and questions.")
    high: float = Field(description="Upper end of it.")
    p_value: float | None = Field(description="Two-sided, of the same bootstrap; None for a single seed.")
    p_holm: float | None = Field(
        description="The p-value corrected for the number of primary comparisons (Holm); None for other figures."
    )
    num_seeds: int = Field(description="Seeds with which both are finished.")
    num_questions: int = Field(description="Questions that both answered.")


class FigureRow(Record):
    """One figure of one variant."""

    variant: str = Field(description="Name of the variant.")
    mode: EvaluationMode = Field(description="greedy or sampled.")
    figure: FigureName = Field(description="The figure.")
    updates: int | None = Field(description="After which updates; None for a figure of the whole curve.")
    is_primary: bool = Field(description="Whether it was chosen before the results.")
    num_seeds: int = Field(ge=1, description="Finished runs.")
    num_reached: int | None = Field(description="Of 'updates_until': runs that reached the threshold; else None.")
    value: Estimate = Field(description="Over the finished runs.")
    difference: FigureDifference | None = Field(
        description="None for the baseline, and while no seed of both is finished."
    )


class RunFigure(Record):
    """One figure of one run."""

    run: str = Field(description="Name of the run.")
    variant: str = Field(description="Its variant.")
    seed: int = Field(description="Its seed.")
    mode: EvaluationMode = Field(description="greedy or sampled.")
    figure: FigureName = Field(description="The figure.")
    updates: int | None = Field(description="After which updates; None for a figure of the whole curve.")
    value: float = Field(description="The figure.")


class VariantCost(Record):
    """What a variant's finished runs cost on average."""

    variant: str = Field(description="Name of the variant.")
    num_seeds: int = Field(ge=1, description="Finished runs.")
    train_s: float = Field(description="Wall-clock seconds of all stages but the evaluations.")
    evaluate_s: float = Field(description="Wall-clock seconds of the evaluations.")
    sampled_tokens: float = Field(description="Tokens that the policy sampled for training.")
    update_tokens: float = Field(description="Tokens of the sequences that the updates trained on.")


class StudyFigures(Record):
    """The figures of a study's finished runs on one split."""

    study: str = Field(description="Name of the study.")
    dataset: str = Field(description="Name of the data set.")
    split: str = Field(description="Its split.")
    num_questions: int = Field(description="Questions.")
    updates: tuple[int, ...] = Field(description="Numbers of updates of the points.")
    rows: tuple[FigureRow, ...] = Field(description="Modes, figures, updates, then variants in the study's order.")
    runs: tuple[RunFigure, ...] = Field(description="The same for each finished run.")
    costs: tuple[VariantCost, ...] = Field(description="Variants in the study's order.")
