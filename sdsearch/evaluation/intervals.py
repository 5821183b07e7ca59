"""Comparison of two ways of training by what they answered: paired over seeds and over questions.

Letters: S seeds, Q questions, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean with the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(
    scores: Sequence[Floats], *, seed: int, num_resamples: int = 10_000, confidence: float = 0.95
) -> Interval:
    """Return the mean of the groups' means, each group counting the same, with a percentile bootstrap interval.

    A group holds the scores of a data set's questions. Every resample draws each group's questions with replacement.
    Scores have few values, and a draw is how often each of them comes, so that thousands of questions cost little.
    """
    generator = np.random.default_rng(seed)
    means_R = np.zeros(num_resamples)
    for group in scores:
        values, counts = np.unique(group, return_counts=True)
        draws_RV = generator.multinomial(group.size, counts / group.size, num_resamples)
        means_R += draws_RV @ values / group.size / len(scores)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means_R, (tail, 1 - tail))
    return Interval(float(np.mean([group.mean() for group in scores])), float(low), float(high))


def paired_bootstrap(
    scores_SQ: Floats,
    baseline_SQ: Floats,
    *,
    seed: int,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """Return the mean of `scores_SQ - baseline_SQ` with a percentile interval of the two-way paired bootstrap.

    Row s of both holds the scores of the runs with the same seed, column q those of the same question. Every
    resample draws S seeds and Q questions with replacement, independently of each other, and averages the differences
    at their crossings. All runs answer the same questions, so a question is drawn for all seeds at once: drawing
    questions anew for every seed would take a question that favours one side with each seed for S independent ones,
    and the interval would be too narrow. Two-way resampling errs to the wide side for differences that belong to
    single pairs of seed and question (Owen 2007, "The pigeonhole bootstrap"), and to the narrow side for what differs
    between few seeds: by a factor of sqrt((S - 1) / S), and not at all seen with one seed.
    """
    assert scores_SQ.shape == baseline_SQ.shape, (scores_SQ.shape, baseline_SQ.shape)
    differences_SQ = scores_SQ - baseline_SQ
    num_seeds, num_questions = differences_SQ.shape
    generator = np.random.default_rng(seed)
    seeds_RS = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples)
    questions_RQ = generator.multinomial(num_questions, np.full(num_questions, 1 / num_questions), num_resamples)
    means_R = ((seeds_RS @ differences_SQ) * questions_RQ).sum(axis=1) / differences_SQ.size
    tail = (1 - confidence) / 2
    low, high = np.quantile(means_R, (tail, 1 - tail))
    return Interval(float(differences_SQ.mean()), float(low), float(high))
