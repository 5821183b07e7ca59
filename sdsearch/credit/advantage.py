"""Group-relative advantages (GRPO; paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

_EPSILON = 1e-6


def group_advantages(rewards: Sequence[Sequence[float]], scale: Literal["group", "batch", "none"]) -> list[list[float]]:
    """Return (reward - group mean) / scale for each group of rewards, in the same shape.

    scale: the group's or the batch's unbiased standard deviation + 1e-6, or 1. Groups with equal rewards get exact
    zeros; so does a group of one.
    """
    everything = np.asarray([reward for group in rewards for reward in group], dtype=np.float64)
    batch_scale = _std(everything) + _EPSILON
    advantages = []
    for group in rewards:
        values = np.asarray(group, dtype=np.float64)
        if np.all(values == values[0]):
            advantages.append([0.0] * len(values))
            continue
        scales = {"group": _std(values) + _EPSILON, "batch": batch_scale, "none": 1.0}
        advantages.append(((values - values.mean()) / scales[scale]).tolist())
    return advantages


def _std(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
