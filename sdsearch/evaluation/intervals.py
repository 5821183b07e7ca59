"""Comparison of two ways of training by what they answered: paired over seeds and over questions.

Letters: S seeds, Q questions, R resamples, V distinct scores.
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
    low, high = _ends(means_R, confidence)
    return Interval(float(np.mean([group.mean() for group in scores])), low, high)


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
    draws = draw_resamples(*differences_SQ.shape, seed=seed, num_resamples=num_resamples)
    means_R = ((draws.seeds_RS @ differences_SQ) * draws.questions_RQ).sum(axis=1) / differences_SQ.size
    low, high = _ends(means_R, confidence)
    return Interval(float(differences_SQ.mean()), low, high)


class Resamples(NamedTuple):
    """How often each resample of the two-way bootstrap has each seed and each question."""

    seeds_RS: NDArray[np.int64]
    questions_RQ: NDArray[np.int64]


def draw_resamples(num_seeds: int, num_questions: int, *, seed: int, num_resamples: int = 10_000) -> Resamples:
    """Draw seeds and questions with replacement, independently of each other."""
    generator = np.random.default_rng(seed)
    seeds_RS = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples)
    questions_RQ = generator.multinomial(num_questions, np.full(num_questions, 1 / num_questions), num_resamples)
    return Resamples(seeds_RS, questions_RQ)


class Comparison(NamedTuple):
    """A difference with its confidence interval and the two-sided p-value of no difference."""

    mean: float
    low: float
    high: float
    p_value: float


def compare_figures(
    observed_S: Floats, resampled_RS: Floats, seeds_RS: NDArray[np.int64], *, confidence: float = 0.95
) -> Comparison:
    """Return the test of a figure's difference between two ways of training, paired by seed.

    Letter s of `observed_S` is the difference of the runs with seed s on all questions, row r of `resampled_RS` that on
    the questions of resample r. So the figure may be any function of a run's answers, such as a ratio of sums or what
    is read off a learning curve. The interval is that of `paired_bootstrap`. The p-value is twice the smaller share of
    resamples on one side of zero, each counted with the data themselves (Davison and Hinkley 1997, section 4.4), so
    that it is never 0; as the interval, it is too small for few seeds.
    """
    num_resamples, num_seeds = resampled_RS.shape
    means_R = (seeds_RS * resampled_RS).sum(axis=1) / num_seeds
    low, high = _ends(means_R, confidence)
    below, above = ((1 + np.count_nonzero(side)) / (1 + num_resamples) for side in (means_R <= 0, means_R >= 0))
    return Comparison(float(observed_S.mean()), low, high, float(min(1.0, 2 * min(below, above))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values (Holm 1979), in the order given.

    Who calls a difference real where this is at most a has a chance of at most a to be wrong about any of them,
    however the tests depend on each other.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _ends(means_R: Floats, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(means_R, (tail, 1 - tail))
    return float(low), float(high)
