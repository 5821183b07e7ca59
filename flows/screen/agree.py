"""How far the variants' credit agrees with what the turns are worth, and with what training made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
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
        if known:
            own = {name: np.array([of[n].credit for n in known], dtype=np.float64) for name, of in credit.items()}
            rows += _rows_of_truth(truth, [turns[number] for number in known], own, baseline, seed)
    return rows


def _rows_of_truth(
    truth: Truth, turns: Sequence[ScreenedTurn], credit: Mapping[str, Floats], baseline: str, seed: int
) -> Iterator[ScreenRow]:
    """Yield the rows of a truth that every one of these turns has; `credit` is a number a turn, by variant."""
    values = np.array([_value(turn, truth) for turn in turns], dtype=np.float64)
    questions = [turn.question_key for turn in turns]
    statistics: tuple[Statistic, ...] = ("auc",) if truth == "hit" else get_args(Statistic)
    for statistic, (variant, own) in product(statistics, credit.items()):
        found = agreement(_STATISTICS[statistic], values, own, credit[baseline], questions, seed=seed)
        if found is not None:
            yield ScreenRow.model_validate(
                {"variant": variant, "truth": truth, "statistic": statistic, **found._asdict()}
            )


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
    ranked = dict.fromkeys((row.truth, row.statistic) for row in rows)
    for (truth, statistic), figure in product(ranked, dict.fromkeys(name for name, _ in trained)):
        screened = {row.variant: row.value for row in rows if (row.truth, row.statistic) == (truth, statistic)}
        both = [variant for variant in screened if (figure, variant) in trained]
        if both:
            sides = ([screened[v] for v in both], [trained[figure, v] for v in both])
            correlation = spearman(*(np.array(side, dtype=np.float64) for side in sides))
            found.append(
                Prediction(
                    truth=truth, statistic=statistic, figure=figure, correlation=correlation, num_variants=len(both)
                )
            )
    return found


FIGURES_BY_NAME: Final = {str(name): title for name, title in FIGURES.items()}


def _value(turn: ScreenedTurn, truth: Truth) -> float | None:
    return (1.0 if turn.hit else -1.0) if truth == "hit" else turn.counterfactual
