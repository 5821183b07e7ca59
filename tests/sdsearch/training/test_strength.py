"""Schedules, the alpha of a gradient share and the gap that closes, against their formulas in numpy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from schemas.records.teacher import QueryCredit
from schemas.settings.root import Settings
from schemas.settings.strength import RetireSchedule
from sdsearch.training.strength import (
    Strength,
    StrengthState,
    asks_teacher,
    begin_iteration,
    carries_state,
    measured_gap,
    retire,
)
from tests.support.records import make_credit, make_groups

WARMUP, ITERATIONS = 2, 10


def settings_of(**distillation: Any) -> Settings:
    return Settings(
        model={"path": "none"},
        iterations=ITERATIONS,
        distillation={"alpha": 0.5, "warmup_iterations": WARMUP, **distillation},
    )


def weights(**schedule: Any) -> list[float]:
    settings = settings_of(schedule=schedule)
    return [settings.alpha_at(iteration) / 0.5 for iteration in range(1, ITERATIONS + 1)]


def test_a_constant_strength_begins_after_the_warm_up() -> None:
    assert weights(kind="constant") == [0.0] * WARMUP + [1.0] * 8


@pytest.mark.parametrize(("iterations", "final"), [(4, 0.0), (4, 0.25), (0, 0.0), (30, 0.5)])
def test_a_falling_strength_is_the_line_or_the_half_cosine(iterations: int, final: float) -> None:
    """The first distilled iteration has all of it; after `iterations` (0: all that are left) what is left stays."""
    span = iterations or ITERATIONS - WARMUP
    progress = np.minimum(np.arange(ITERATIONS - WARMUP) / span, 1)
    line = np.interp(progress, [0, 1], [1, final])
    cosine = final + (1 - final) * (1 + np.cos(np.pi * progress)) / 2
    assert weights(kind="linear", iterations=iterations, final=final) == pytest.approx([0, 0, *line], abs=1e-15)
    assert weights(kind="cosine", iterations=iterations, final=final) == pytest.approx([0, 0, *cosine], abs=1e-15)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_what_has_faded_to_nothing_is_exactly_zero_and_asks_no_teacher(kind: str) -> None:
    settings = settings_of(schedule={"kind": kind, "iterations": 4})
    asked = [asks_teacher(settings, iteration, StrengthState()) for iteration in range(1, ITERATIONS + 1)]
    assert asked == [False] * 2 + [True] * 4 + [False] * 4
    assert settings.alpha_at(7) == 0.0
    assert settings.distils, "it distils before"
    assert not settings.only_warms_up


def share(norms: list[tuple[float, float]], **strength: Any) -> list[float]:
    """The alphas in force as one step after another is measured."""
    settings = settings_of(strength={"kind": "gradient_share", **strength})
    force = begin_iteration(settings, WARMUP + 1)
    alphas = [force.alpha]
    for grpo, sd in norms:
        force = force.with_norms(grpo, sd)
        alphas.append(force.alpha)
    return alphas


def test_alpha_gives_the_wanted_share_of_the_smoothed_norms() -> None:
    norms = np.array([[2.0, 4.0], [1.0, 0.5], [3.0, 9.0], [0.2, 0.1]])
    smoothed = [norms[0]]
    for row in norms[1:]:
        smoothed.append(0.75 * smoothed[-1] + 0.25 * row)
    expected = [0.3 * grpo / sd for grpo, sd in smoothed]
    assert share(norms.tolist(), share=0.3, smoothing=0.75) == pytest.approx([0.5, *expected])


def test_alpha_stays_within_its_bounds() -> None:
    found = share([(100.0, 1.0), (1e-9, 1.0)], share=1.0, smoothing=0.0, min_alpha=0.1, max_alpha=3.0)
    assert found == [0.5, 3.0, 0.1]
    assert share([], min_alpha=0.7, max_alpha=3.0) == [0.7], "the first one, which is not measured, too"


@pytest.mark.parametrize("norms", [(0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.inf)])
def test_a_measurement_of_nothing_changes_nothing(norms: tuple[float, float]) -> None:
    assert share([(1.0, 2.0), norms], share=1.0) == [0.5, 0.5, 0.5]
    assert share([norms], share=1.0) == [0.5, 0.5]


def test_bounds_hold_before_the_schedule_and_the_schedule_lowers_the_share() -> None:
    wanted = {"kind": "gradient_share", "share": 0.8, "min_alpha": 0.4}
    settings = settings_of(strength=wanted, schedule={"kind": "linear", "iterations": 4})
    state = StrengthState(norm_grpo=1.0, norm_sd=4.0)
    found = [begin_iteration(settings, iteration, state) for iteration in range(1, 8)]
    assert [force.alpha for force in found] == pytest.approx([0, 0, 0.4, 0.3, 0.2, 0.1, 0.0])
    assert [force.share for force in found] == pytest.approx([0, 0, 0.8, 0.6, 0.4, 0.2, 0.0])


def test_it_is_measured_every_so_many_iterations_and_until_there_is_something() -> None:
    settings = settings_of(strength={"kind": "gradient_share", "every": 3})
    known = StrengthState(norm_grpo=1.0, norm_sd=1.0)
    measured = [begin_iteration(settings, iteration, known).measures for iteration in range(3, 10)]
    assert measured == [True, False, False, True, False, False, True]
    assert all(begin_iteration(settings, iteration).measures for iteration in range(3, 10))
    assert not begin_iteration(settings_of(), 3).measures


def retired(gaps: list[float | None], **schedule: Any) -> list[float]:
    state, left = StrengthState(), []
    for gap in gaps:
        state = retire(RetireSchedule(**schedule), state, gap)
        left.append(state.retired_to)
    return left


def test_it_retires_as_the_gap_closes_from_the_largest_and_never_comes_back() -> None:
    gaps = [0.2, 0.4, 0.3, 0.35, 0.1, 0.2, 0.04, 0.4]
    smoothed = [gaps[0]]
    for gap in gaps[1:]:
        smoothed.append(0.5 * smoothed[-1] + 0.5 * gap)
    largest = np.maximum.accumulate(smoothed)
    expected = np.minimum.accumulate(np.clip((np.array(smoothed) / largest - 0.4) / 0.6, 0, 1))
    assert retired(gaps, closed=0.4, smoothing=0.5) == pytest.approx(expected)
    assert expected[0] == expected[1] == 1.0, "while it opens nothing is lost"
    assert expected[-1] < 0.2


def test_nothing_is_lost_without_a_gap_and_all_of_it_once_closed() -> None:
    assert retired([-0.1, 0.0, None, -2.0]) == [1.0, 1.0, 1.0, 1.0]
    assert retired([None, 1.0, None, 0.25, None, 5.0], smoothing=0.0, closed=0.25) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    settings = settings_of(schedule={"kind": "retire"})
    state = retire(RetireSchedule(smoothing=0.0), retire(RetireSchedule(), StrengthState(), 1.0), 0.0)
    assert not asks_teacher(settings, 5, state)
    assert asks_teacher(settings, 5, replace(state, retired_to=0.1))
    assert begin_iteration(settings, 5, state).alpha == 0.0


def test_a_fork_with_another_gap_or_schedule_begins_anew() -> None:
    state = StrengthState(norm_grpo=1.0, norm_sd=2.0, gap_kind="entropy", gap=0.1, largest_gap=1.0, retired_to=0.0)
    other = begin_iteration(settings_of(schedule={"kind": "retire", "gap": "log_ratio"}), 5, state).state
    assert (other.gap, other.largest_gap, other.retired_to) == (None, None, 1.0)
    plain = begin_iteration(settings_of(), 5, state)
    assert plain.alpha == 0.5
    assert plain.state.norm_grpo == 1.0
    assert asks_teacher(settings_of(), 5, state)


def test_what_a_fixed_alpha_needs_of_the_past_is_nothing() -> None:
    assert not carries_state(settings_of(schedule={"kind": "cosine"}).distillation)
    assert carries_state(settings_of(schedule={"kind": "retire"}).distillation)
    assert carries_state(settings_of(strength={"kind": "gradient_share"}).distillation)
    assert isinstance(begin_iteration(settings_of(enabled=False), 5), Strength)
    assert begin_iteration(settings_of(enabled=False), 5).alpha == 0.0


def test_the_gaps_are_the_means_over_the_distilled_tokens() -> None:
    credit: list[QueryCredit] = make_credit(make_groups())
    entropy = np.array([[token.student_entropy, token.teacher_entropy] for token in credit])
    assert measured_gap("entropy", credit, ()) == pytest.approx(float((entropy[:, 0] - entropy[:, 1]).mean()))
    correct = {credit[0].rollout_id}
    ratio = np.array([token.teacher_logprob - token.student_logprob for token in credit])
    inside = np.array([token.rollout_id in correct for token in credit])
    assert 0 < inside.sum() < len(credit)
    expected = float(ratio[inside].mean() - ratio[~inside].mean())
    assert expected != 0
    assert measured_gap("log_ratio", credit, correct) == pytest.approx(expected)
    assert measured_gap("log_ratio", credit, ()) is None
    assert measured_gap("entropy", [], ()) is None
