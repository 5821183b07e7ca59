"""AUC and rank correlation against SciPy, and their intervals against what they must do."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sdsearch.evaluation.agreement import agreement, auc, spearman


def drawn(seed: int, size: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A truth with zeros and a credit with ties that goes with it."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(-2, 3, size).astype(np.float64)
    return truth, np.round(truth + generator.normal(0, 2, size), 0)


@pytest.mark.parametrize("seed", range(5))
def test_both_statistics_are_scipys(seed: int) -> None:
    truth, credit = drawn(seed)
    good, bad = credit[truth > 0], credit[truth < 0]
    expected = stats.mannwhitneyu(good, bad).statistic / (good.size * bad.size)
    assert auc(truth, credit) == pytest.approx(expected)
    assert spearman(truth, credit) == pytest.approx(stats.spearmanr(truth, credit).statistic)


def test_where_they_are_not_defined() -> None:
    ones = np.ones(4)
    assert auc(ones, np.arange(4.0)) is None
    assert spearman(ones, np.arange(4.0)) is None
    assert spearman(np.arange(4.0), ones) is None
    assert spearman(np.ones(1), np.ones(1)) is None
    assert agreement(auc, ones, ones, ones, list("abcd"), seed=0) is None


def test_a_perfect_credit_beats_one_that_is_the_same_everywhere() -> None:
    truth, _ = drawn(0)
    questions = [str(number // 3) for number in range(truth.size)]
    found = agreement(auc, truth, truth, np.zeros_like(truth), questions, seed=0, num_resamples=200)
    assert found is not None
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    assert (found.difference, found.difference_low, found.difference_high) == (0.5, 0.5, 0.5)
    assert found.num_turns == truth.size


def test_the_interval_is_over_questions_and_not_over_turns() -> None:
    """Turns that are copies of one another add nothing: the interval stays as wide as with one of each."""
    truth, credit = drawn(3, size=30)
    base = np.zeros_like(truth)
    one = agreement(spearman, truth, credit, base + np.arange(30.0), [str(n) for n in range(30)], seed=1)
    four = agreement(
        spearman,
        np.repeat(truth, 4),
        np.repeat(credit, 4),
        np.repeat(base + np.arange(30.0), 4),
        [str(n // 4) for n in range(120)],
        seed=1,
    )
    assert one is not None
    assert four is not None
    assert (four.low, four.high) == pytest.approx((one.low, one.high), abs=1e-9)
    assert one.low < one.value < one.high
