"""How far a credit agrees with a ground truth, turn by turn: area under the ROC curve, rank correlation, intervals.

Letters: N turns, G questions, R resamples. A resample draws questions with replacement, since the turns of one question
are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdsearch.evaluation.intervals import Floats

Statistic = Callable[[Floats, Floats], float | None]
"""Of the truth and the credit, (N,) each; None where it is not defined."""


class Agreement(NamedTuple):
    """A statistic of one credit with its interval, and its difference to the baseline's, paired by question."""

    value: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    num_turns: int


def auc(truth_N: Floats, credit_N: Floats) -> float | None:
    """Return how often a turn with truth > 0 has more credit than one with truth < 0; equal credits count half.

    Turns whose truth is 0 are left out. None unless both kinds are there. This is the area under the ROC curve
    (Mann-Whitney).
    """
    good, bad = credit_N[truth_N > 0], credit_N[truth_N < 0]
    if not good.size or not bad.size:
        return None
    ranks = _midranks(np.concatenate([good, bad]))
    return float((ranks[: good.size].sum() - good.size * (good.size + 1) / 2) / (good.size * bad.size))


def spearman(truth_N: Floats, credit_N: Floats) -> float | None:
    """Return the correlation of the ranks, equal values with their mean rank; None where one side is constant."""
    if truth_N.size < 2:
        return None
    ranks = _midranks(truth_N), _midranks(credit_N)
    first, second = (of_side - of_side.mean() for of_side in ranks)
    norm = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / norm) if norm > 0 else None


def agreement(
    statistic: Statistic,
    truth_N: Floats,
    credit_N: Floats,
    baseline_N: Floats,
    questions: Sequence[str],
    *,
    seed: int,
    num_resamples: int = 1000,
) -> Agreement | None:
    """Return a credit's agreement with the truth and how it differs from the baseline's; None where it is not defined.

    The 95 % intervals are percentiles over resampled questions; a resample in which either side is not defined is left
    out.
    """
    value, base = statistic(truth_N, credit_N), statistic(truth_N, baseline_N)
    if value is None or base is None:
        return None
    values: list[tuple[float, float]] = []
    for rows in _resampled(questions, seed, num_resamples):
        drawn = statistic(truth_N[rows], credit_N[rows]), statistic(truth_N[rows], baseline_N[rows])
        if drawn[0] is not None and drawn[1] is not None:
            values.append((drawn[0], drawn[0] - drawn[1]))
    (low, high), (difference_low, difference_high) = np.quantile(np.array(values), (0.025, 0.975), axis=0).T
    return Agreement(value, low, high, value - base, difference_low, difference_high, truth_N.size)


def _resampled(questions: Sequence[str], seed: int, num_resamples: int) -> Sequence[NDArray[np.int64]]:
    """Return for each resample the places of its turns: those of each question as often as it was drawn."""
    names, question_N = np.unique(np.array(questions), return_inverse=True)
    places = [np.flatnonzero(question_N == number) for number in range(len(names))]
    generator = np.random.default_rng(seed)
    drawn_RG = generator.integers(0, len(names), (num_resamples, len(names)))
    return [np.concatenate([places[number] for number in drawn_G]) for drawn_G in drawn_RG]


def _midranks(values_N: Floats) -> Floats:
    """Return the ranks from 1, equal values with the mean of their ranks."""
    _, inverse_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Floats = (last - (counts - 1) / 2)[inverse_N]
    return mean
