"""The two-way paired bootstrap against cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sdsearch.evaluation.intervals import (
    Floats,
    Interval,
    bootstrap_mean,
    compare_figures,
    draw_resamples,
    holm,
    paired_bootstrap,
)


def interval(differences_SQ: Floats, **options: float) -> Interval:
    return paired_bootstrap(differences_SQ, np.zeros_like(differences_SQ), seed=0, **options)  # type: ignore[arg-type]


def width(found: Interval) -> float:
    return found.high - found.low


def test_equal_scores_differ_by_nothing() -> None:
    scores = np.random.default_rng(0).random((3, 20))
    assert paired_bootstrap(scores, scores, seed=0) == Interval(0.0, 0.0, 0.0)


def test_what_both_sides_share_has_no_part_in_it() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(0, 100, (2, 50))
    difference = generator.normal(0.1, 0.4, (2, 50))
    assert paired_bootstrap(hard + difference, hard, seed=0) == pytest.approx(interval(difference), abs=1e-9)


def test_the_sign_is_scores_minus_baseline() -> None:
    ones, zeros = np.ones((2, 5)), np.zeros((2, 5))
    assert paired_bootstrap(ones, zeros, seed=0) == Interval(1.0, 1.0, 1.0)
    assert paired_bootstrap(zeros, ones, seed=0) == Interval(-1.0, -1.0, -1.0)


def test_one_seed_gives_the_normal_interval_of_a_mean() -> None:
    differences = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=(1, 400))
    found = interval(differences)
    standard_error = differences.std() / np.sqrt(400)
    assert found.mean == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx(
        (found.mean - 1.96 * standard_error, found.mean + 1.96 * standard_error), abs=0.1 * standard_error
    )
    assert width(interval(differences, confidence=0.5)) == pytest.approx(2 * 0.6745 * standard_error, rel=0.1)


def test_both_intervals_are_those_of_scipy() -> None:
    """SciPy draws several samples apart from each other: of seeds and questions, their indices."""
    generator = np.random.default_rng(5)
    differences = generator.normal(0.1, 0.4, (4, 60)) + generator.normal(0, 0.3, (4, 1))

    def mean_of_crossings(seeds: NDArray[np.int64], questions: NDArray[np.int64]) -> float:
        return float(differences[np.ix_(seeds, questions)].mean())

    found = interval(differences)
    low, high = stats.bootstrap(
        (np.arange(4), np.arange(60)), mean_of_crossings, vectorized=False, n_resamples=4000, method="percentile", rng=0
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * (high - low))

    groups = [generator.choice([0.0, 0.5, 1.0], 30), generator.choice([0.0, 1.0], 90)]

    def mean_of_means(first: Floats, second: Floats, axis: int) -> Floats:
        means: Floats = (first.mean(axis=axis) + second.mean(axis=axis)) / 2
        return means

    found = bootstrap_mean(groups, seed=0)
    low, high = stats.bootstrap(groups, mean_of_means, n_resamples=4000, method="percentile", rng=0).confidence_interval
    assert found.mean == pytest.approx(mean_of_means(groups[0], groups[1], axis=0))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * (high - low))


def test_two_seeds_without_noise_of_questions_span_their_difference() -> None:
    # A quarter of the resamples holds the first seed alone, a quarter the second.
    differences = np.repeat([[0.1], [0.3]], 50, axis=1)
    assert interval(differences) == pytest.approx(Interval(0.2, 0.1, 0.3))


def test_seeds_do_not_average_out_what_questions_share() -> None:
    one_seed = np.random.default_rng(2).normal(0.0, 0.5, (1, 200))
    assert width(interval(np.repeat(one_seed, 5, axis=0))) == pytest.approx(width(interval(one_seed)), rel=0.06)


def test_seeds_average_out_what_they_do_not_share() -> None:
    noise = np.random.default_rng(3).normal(0.0, 0.5, (8, 200))
    assert width(interval(noise)) < 0.7 * width(interval(noise[:1]))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(4)
    covered = 0
    for number in range(60):
        effects = generator.normal(0, 0.02, (3, 1)) + generator.normal(0, 0.25, (1, 100))
        differences = 0.05 + effects + generator.normal(0, 0.4, (3, 100))
        found = paired_bootstrap(differences, np.zeros_like(differences), seed=number, num_resamples=500)
        covered += found.low <= 0.05 <= found.high
    assert covered >= 0.9 * 60


def test_the_seed_fixes_it() -> None:
    differences = np.random.default_rng(5).normal(size=(2, 30))
    zeros = np.zeros_like(differences)
    assert paired_bootstrap(differences, zeros, seed=1) == paired_bootstrap(differences, zeros, seed=1)
    assert paired_bootstrap(differences, zeros, seed=1) != paired_bootstrap(differences, zeros, seed=2)


def test_the_interval_of_a_mean_is_the_normal_one_for_many_questions() -> None:
    scores = np.array([1.0] * 600 + [0.0] * 400)
    found = bootstrap_mean([scores], seed=0)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 1000)
    assert found.mean == pytest.approx(0.6)
    assert found.low == pytest.approx(0.6 - half, abs=0.002)
    assert found.high == pytest.approx(0.6 + half, abs=0.002)


def test_a_mean_of_groups_weighs_each_group_alike_and_draws_within_it() -> None:
    small, large = np.array([1.0, 0.0]), np.full(1000, 0.5)
    found = bootstrap_mean([small, large], seed=0)
    assert found.mean == pytest.approx(0.5)
    assert (found.low, found.high) == (pytest.approx(0.25), pytest.approx(0.75)), "only the small group varies"


def test_drawing_values_is_drawing_questions() -> None:
    scores = np.random.default_rng(1).random(40)
    found = bootstrap_mean([scores], seed=0)
    picks = np.random.default_rng(2).integers(40, size=(10_000, 40))
    low, high = np.quantile(scores[picks].mean(axis=1), (0.025, 0.975))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.005), pytest.approx(high, abs=0.005))


def test_a_figures_interval_is_that_of_its_mean_where_the_figure_is_a_mean() -> None:
    differences = np.random.default_rng(7).normal(0.1, 0.4, (4, 60))
    draws = draw_resamples(4, 60, seed=3)
    resampled_RS = draws.questions_RQ @ differences.T / 60
    found = compare_figures(differences.mean(axis=1), resampled_RS, draws.seeds_RS)
    expected = paired_bootstrap(differences, np.zeros_like(differences), seed=3)
    assert found[:3] == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize("mean", [0.0, 0.02, -0.05, 0.3])
def test_the_p_value_of_many_questions_is_that_of_a_t_test(mean: float) -> None:
    differences = np.random.default_rng(8).normal(mean, 0.4, (1, 500))
    draws = draw_resamples(1, 500, seed=4)
    found = compare_figures(differences.mean(axis=1), draws.questions_RQ @ differences.T / 500, draws.seeds_RS)
    assert found.p_value == pytest.approx(float(stats.ttest_1samp(differences[0], 0).pvalue), abs=0.02)
    assert found.p_value > 0


def test_no_difference_anywhere_has_a_p_value_of_one() -> None:
    draws = draw_resamples(2, 5, seed=0, num_resamples=50)
    assert compare_figures(np.zeros(2), np.zeros((50, 2)), draws.seeds_RS) == (0.0, 0.0, 0.0, 1.0)


def test_holms_correction_is_the_closed_test_of_bonferronis() -> None:
    """A hypothesis is rejected when every set of hypotheses with it is, each set by Bonferroni's rule."""
    generator = np.random.default_rng(9)
    for size in (1, 2, 3, 6):
        p_values = [float(p) for p in generator.choice([0.001, 0.01, 0.02, 0.04, 0.3, 0.9], size)]
        expected = [
            max(
                min(1.0, len(chosen) * min(p_values[k] for k in chosen))
                for number in range(2**size)
                if number >> place & 1
                for chosen in [[k for k in range(size) if number >> k & 1]]
            )
            for place in range(size)
        ]
        assert holm(p_values) == pytest.approx(expected)
    assert holm([]) == []
