"""Figures of a learning curve against what other tools make of the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, optimize

from sdsearch.evaluation.curves import area_under, updates_until, weighted_ratios

UPDATES = np.array([0.0, 6.0, 12.0, 18.0, 24.0])


def test_ratios_are_those_of_the_drawn_questions() -> None:
    generator = np.random.default_rng(0)
    numerators, denominators = generator.integers(0, 4, (7, 3)).astype(float), generator.integers(0, 4, (7, 3))
    weights = generator.multinomial(7, np.full(7, 1 / 7), 20)
    found = weighted_ratios(numerators, denominators.astype(float), weights)
    for row, counts in zip(found, weights, strict=True):
        drawn = np.repeat(np.arange(7), counts)
        sums = denominators[drawn].sum(axis=0)
        expected = [n / d if d else 0.0 for n, d in zip(numerators[drawn].sum(axis=0), sums, strict=True)]
        assert row == pytest.approx(expected)


def test_nothing_found_is_nothing_read() -> None:
    assert weighted_ratios(np.zeros((2, 1)), np.zeros((2, 1)), np.ones((1, 2), dtype=np.int64)) == 0.0


def test_the_area_is_the_mean_of_the_curve_between_its_ends() -> None:
    curves = np.random.default_rng(1).random((4, 5))
    for curve, area in zip(curves, area_under(curves, UPDATES), strict=True):
        whole, _ = integrate.quad(lambda at, c=curve: float(np.interp(at, UPDATES, c)), 0, 24, points=[6, 12, 18])
        assert area == pytest.approx(whole / 24)
    assert area_under(np.full((1, 5), 0.4), UPDATES) == pytest.approx(0.4)


def test_the_threshold_is_reached_where_the_curve_first_crosses_it() -> None:
    curve = np.array([[0.3, 0.5, 0.7, 0.4, 0.8]])
    crossing = optimize.brentq(lambda at: float(np.interp(at, UPDATES, curve[0])) - 0.6, 0, 12)
    assert updates_until(curve, UPDATES, 0.6) == pytest.approx(crossing)
    assert updates_until(curve, UPDATES, 0.7) == pytest.approx(12.0)


def test_a_curve_that_starts_above_needs_no_update_and_one_that_stays_below_all() -> None:
    curves = np.array([[0.7, 0.2, 0.9, 0.9, 0.9], [0.1, 0.2, 0.3, 0.4, 0.5], [0.6, 0.6, 0.6, 0.6, 0.6]])
    assert updates_until(curves, UPDATES, 0.6) == pytest.approx([0.0, 24.0, 0.0])
