"""Group-relative advantages: what must hold for any rewards."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdsearch.credit.advantage import group_advantages

rewards = st.lists(st.floats(0, 1.5), min_size=2, max_size=8)


@given(st.lists(rewards, min_size=1, max_size=5), st.sampled_from(["group", "batch", "none"]))
def test_each_group_sums_to_zero(groups: list[list[float]], scale: str) -> None:
    for advantages in group_advantages(groups, scale):
        assert sum(advantages) == pytest.approx(0, abs=1e-6)


@given(rewards, st.permutations(range(8)))
def test_permuting_siblings_permutes_advantages(group: list[float], order: list[int]) -> None:
    order = [place for place in order if place < len(group)]
    (advantages,) = group_advantages([group], "group")
    (permuted,) = group_advantages([[group[place] for place in order]], "group")
    assert permuted == pytest.approx([advantages[place] for place in order], rel=1e-9, abs=1e-9)


@given(st.lists(rewards, min_size=2, max_size=4), st.sampled_from(["group", "batch", "none"]))
def test_the_scale_is_the_unbiased_deviation_of_the_group_or_the_batch(groups: list[list[float]], scale: str) -> None:
    everything = [reward for group in groups for reward in group]
    for group, advantages in zip(groups, group_advantages(groups, scale), strict=True):
        deviation = statistics.stdev(everything if scale == "batch" else group) + 1e-6
        expected = [(reward - statistics.fmean(group)) / (1 if scale == "none" else deviation) for reward in group]
        assert advantages == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(st.floats(0, 1), st.integers(2, 6), st.sampled_from(["group", "batch", "none"]))
def test_equal_rewards_give_exact_zeros(reward: float, size: int, scale: str) -> None:
    assert group_advantages([[reward] * size, [0.0, 1.0]], scale)[0] == [0.0] * size
