"""Screening: what the turns of stored rollouts are worth, and how far the credit of variants agrees with it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Record

Truth = Literal["hit", "counterfactual"]
Statistic = Literal["auc", "spearman"]


class DrawnF1(Record):
    """What came of a stored rollout when a turn of it was drawn anew and the rest with it."""

    rollout_id: str = Field(description="The stored rollout.")
    turn: int = Field(ge=0, description="The first turn that was drawn anew, from 0.")
    draw: int = Field(ge=0, description="Which draw.")
    f1: float = Field(ge=0, le=1, description="Token F1 that it ended with.")


class ScreenedTurn(Record):
    """A turn that searched, and what the ground truths say of it."""

    iteration: int = Field(description="Iteration of the run.")
    group_id: str = Field(description="Its group.")
    question_key: str = Field(description="Its question.")
    rollout_id: str = Field(description="Its rollout.")
    turn: int = Field(ge=0, description="Place in the rollout, from 0.")
    query: str = Field(description="What it searched for.")
    hit: bool = Field(description="Its search found what the question needs (ScreenResults.hit_means).")
    value_before: float | None = Field(description="Mean F1 of the draws from before the turn on; None without draws.")
    value_after: float | None = Field(description="Mean F1 of the draws from behind its documents on.")

    @property
    def counterfactual(self) -> float | None:
        """What the turn changed in the F1 that is to be expected, in comparison with other draws of the policy."""
        if self.value_before is None or self.value_after is None:
            return None
        return self.value_after - self.value_before


class TurnCredit(Record):
    """What a variant's credit says of a turn."""

    variant: str = Field(description="Name of the variant.")
    rollout_id: str = Field(description="Its rollout.")
    turn: int = Field(ge=0, description="Place in the rollout, from 0.")
    credit: float = Field(allow_inf_nan=False, description="The credit; above 0 what the turn wrote is favoured.")


class ScreenRow(Record):
    """How far one variant's credit agrees with one ground truth."""

    variant: str = Field(description="Name of the variant.")
    truth: Truth = Field(description="hit or counterfactual.")
    statistic: Statistic = Field(description="auc: area under the ROC curve; spearman: correlation of the ranks.")
    value: float = Field(description="The agreement: .5 is chance for auc, 0 for spearman.")
    low: float = Field(description="Lower end of the 95 % interval over questions.")
    high: float = Field(description="Upper end.")
    difference: float = Field(description="To the baseline's, on the same turns.")
    difference_low: float = Field(description="Lower end of its 95 % interval, paired by question.")
    difference_high: float = Field(description="Upper end.")
    num_turns: int = Field(ge=1, description="Turns.")


class Prediction(Record):
    """How well screening says in advance which variant trains best."""

    truth: Truth = Field(description="The ground truth that screening took.")
    statistic: Statistic = Field(description="The statistic that it ranked by.")
    figure: str = Field(description="The figure of the trained variants, with mode and updates.")
    correlation: float | None = Field(description="Rank correlation over variants; None where one side is constant.")
    num_variants: int = Field(ge=1, description="Variants of both.")


class ScreenResults(Record):
    """Everything that a screening's table is made from."""

    run: str = Field(description="The run whose rollouts were taken.")
    first: int = Field(description="First iteration.")
    last: int = Field(description="Last iteration.")
    num_groups: int = Field(description="Groups whose turns were taken.")
    num_turns: int = Field(description="Turns that searched.")
    num_hits: int = Field(description="Of them, those whose search hit.")
    num_draws: int = Field(description="Draws from each point; 0 without a counterfactual.")
    hit_means: str = Field(description="What counts as a hit.")
    baseline: str = Field(description="The variant that the others are compared with.")
    titles: dict[str, str] = Field(description="What tables call each variant.")
    rows: tuple[ScreenRow, ...] = Field(description="Truths, statistics, then variants in the file's order.")
    predictions: tuple[Prediction, ...] = Field(description="Compared with a study of trained variants; else empty.")
