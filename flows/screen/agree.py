"""How far the variants' credit agrees with what the turns are worth, and with what training made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, get_args

import numpy as np

from schemas.records.screen import Prediction, ScreenedTurn, ScreenRow, Statistic, Truth, TurnCredit
from schemas.records.study import Study
from schemas.records.study_figures import FIGURES, StudyFigures
from sdsearch.evaluation.agreement import agreement, auc, spearman
from sdsearch.evaluation.intervals import Floats

_STATISTICS: Final[dict[Statistic, Callable[[Floats, Floats], float | None]]] = {"auc": auc, "spearman": spearman}


def compare(
    turns: Sequence[ScreenedTurn], credit: Mapping[str, Sequence[TurnCredit]], baseline: str, seed: int
) -> list[ScreenRow]:
    """Return a row for each truth, statistic and variant; none for a truth that is not known or says nothing.

    A hit counts as 1 and a miss as -1, so that the AUC tells the two apart; of the counterfactual it tells turns above
    0 from turns below 0. A hit has no ranks, so there is no rank correlation with it.
    """
    rows: list[ScreenRow] = []
    for truth in get_args(Truth):
        known = [number for number, turn in enumerate(turns) if _value(turn, truth) is not None]
        values = np.array([_value(turns[number], truth) for number in known], dtype=np.float64)
        questions = [turns[number].question_key for number in known]
        of_variant = {name: np.array([of[n].credit for n in known], dtype=np.float64) for name, of in credit.items()}
        for statistic in ("auc",) if truth == "hit" else get_args(Statistic):
            for variant, own in of_variant.items():
                found = (
                    agreement(_STATISTICS[statistic], values, own, of_variant[baseline], questions, seed=seed)
                    if known
                    else None
                )
                if found is not None:
                    rows.append(
                        ScreenRow.model_validate(
                            {"variant": variant, "truth": truth, "statistic": statistic, **found._asdict()}
                        )
                    )
    return rows


def predictions(rows: Sequence[ScreenRow], study: Study, figures: StudyFigures) -> list[Prediction]:
    """Return how each screened ranking of variants goes with each primary figure of the trained ones."""
    trained = {
        (
            f"{row.mode} {FIGURES_BY_NAME[row.figure]}" + (f" after {row.updates}" if row.updates else ""),
            row.variant,
        ): row.value.mean
        for row in figures.rows
        if row.is_primary and row.variant in study.variants
    }
    found = []
    for truth, statistic in dict.fromkeys((row.truth, row.statistic) for row in rows):
        screened = {row.variant: row.value for row in rows if (row.truth, row.statistic) == (truth, statistic)}
        for figure in dict.fromkeys(name for name, _ in trained):
            both = [variant for variant in screened if (figure, variant) in trained]
            if both:
                sides = ([screened[v] for v in both], [trained[figure, v] for v in both])
                found.append(
                    Prediction(
                        truth=truth,
                        statistic=statistic,
                        figure=figure,
                        correlation=spearman(*(np.array(side, dtype=np.float64) for side in sides)),
                        num_variants=len(both),
                    )
                )
    return found


FIGURES_BY_NAME: Final = {str(name): title for name, title in FIGURES.items()}


def _value(turn: ScreenedTurn, truth: Truth) -> float | None:
    return (1.0 if turn.hit else -1.0) if truth == "hit" else turn.counterfactual
