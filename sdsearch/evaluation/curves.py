"""Figures of a learning curve, for the data and for every resample of the questions at once.

Letters: W weightings of the questions (the data's own, or a resample's), Q questions, P points of the curve, which are
numbers of updates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdsearch.evaluation.intervals import Floats


def weighted_ratios(numerators_QP: Floats, denominators_QP: Floats, weights_WQ: NDArray[np.int64]) -> Floats:
    """Return the ratio of the weighted sums over questions at each point, W x P; 0 where the denominator is 0.

    With denominators of 1 these are means. "EM where found" has EM times found over found.
    """
    numerators_WP, denominators_WP = weights_WQ @ numerators_QP, weights_WQ @ denominators_QP
    ratios_WP: Floats = np.divide(
        numerators_WP, denominators_WP, out=np.zeros_like(numerators_WP), where=denominators_WP > 0
    )
    return ratios_WP


def area_under(values_WP: Floats, updates_P: Floats) -> Floats:
    """Return the area under each curve by the trapezoidal rule, divided by its length: the mean value on the way."""
    areas_W: Floats = np.trapezoid(values_WP, updates_P, axis=1) / (updates_P[-1] - updates_P[0])
    return areas_W


def updates_until(values_WP: Floats, updates_P: Floats, threshold: float) -> Floats:
    """Return the updates after which each curve first reaches the threshold, linear between its points.

    A curve that never does counts with its last number of updates, so that means are restricted means: too small where
    not all have reached it.
    """
    reached_WP = values_WP >= threshold
    first_W = np.argmax(reached_WP, axis=1)
    rows_W, before_W = np.arange(len(values_WP)), np.maximum(first_W - 1, 0)
    low_W, high_W = values_WP[rows_W, before_W], values_WP[rows_W, first_W]
    rise_W = np.where(high_W > low_W, high_W - low_W, 1.0)
    share_W = np.where(first_W > 0, (threshold - low_W) / rise_W, 1.0)
    crossed_W = updates_P[before_W] + share_W * (updates_P[first_W] - updates_P[before_W])
    until_W: Floats = np.where(reached_WP.any(axis=1), crossed_W, updates_P[-1])
    return until_W
