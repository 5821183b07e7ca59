"""What is called an alarm: figures that fall or grow, against a run's own past."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest

from schemas.settings.alarms import AlarmSettings
from sdsearch.training.alarms import ALARMS, Evaluated, Vitals, find_collapses, find_fall

PLAN = AlarmSettings()
HEALTHY = Vitals(valid_share=0.9, tokens_per_rollout=40, searches_per_rollout=2, entropy=0.5, sampler_gap=0.002)


def evaluated(updates: int, right: int, wrong: int = 0, start: int = 0) -> Evaluated:
    """Of the questions from `start` on so many are answered right, then so many wrong."""
    return Evaluated(updates, {str(start + place): float(place < right) for place in range(right + wrong)})


@pytest.mark.parametrize(("lost", "fires"), [(9, False), (10, True), (30, True)])
def test_em_that_fell_by_more_than_its_noise(lost: int, fires: bool) -> None:
    """`lost` questions were right and none became right instead: sqrt(lost) standard errors."""
    best, last = evaluated(2, 60, 40), evaluated(4, 60 - lost, 40 + lost)
    alarm = find_fall([evaluated(0, 50, 50), best, last], PLAN)
    assert (alarm is not None) == fires == (sqrt(lost) > PLAN.em_fall)
    if alarm:
        assert (alarm.kind, alarm.iteration, alarm.value, alarm.compared_with) == ("em_fell", 4, 0.6 - lost / 100, 0.6)
        assert f"from 0.600 after 2 updates to {0.6 - lost / 100:.3f} after 4, {sqrt(lost):.1f} standard" in alarm.text


def test_what_is_won_elsewhere_counts_as_noise() -> None:
    """20 lost and 8 won: 12 / sqrt(28), 2.3 standard errors; without the 8 it were 4.5."""
    best = Evaluated(1, {str(n): float(n < 30) for n in range(50)})
    last = Evaluated(2, {str(n): float(20 <= n < 38) for n in range(50)})
    assert find_fall([best, last], PLAN) is None
    assert find_fall([best, last], replace_plan(em_fall=2.2)) is not None
    assert find_fall([best, last], replace_plan(em_fall=2.4)) is None


def test_a_small_evaluation_is_no_proof() -> None:
    assert find_fall([evaluated(1, 8), evaluated(2, 0, 8)], PLAN) is None


def test_the_best_is_the_best_before_and_a_rise_is_no_fall() -> None:
    rising = [evaluated(0, 20, 80), evaluated(1, 90, 10)]
    assert find_fall(rising, PLAN) is None
    fell = find_fall([*rising, evaluated(2, 40, 60), evaluated(3, 45, 55)], PLAN)
    assert fell is not None
    assert (fell.compared_with, fell.value) == (0.9, 0.45)
    assert find_fall([evaluated(0, 90, 10)], PLAN) is None
    assert find_fall([evaluated(0, 90), evaluated(1, 90)], PLAN) is None
    assert find_fall([*rising, evaluated(2, 40, 60)], replace_plan(em_fall=0)) is None


def test_questions_that_only_one_of_them_asked_do_not_count() -> None:
    """Of the best's 60 right answers 12 were asked again and 8 of these are wrong now: 2.8 standard errors."""
    best, last = evaluated(1, 60), evaluated(2, 4, 96, start=48)
    assert find_fall([best, last], PLAN) is None
    assert find_fall([best, last], replace_plan(em_fall=2.8)) is not None


def replace_plan(**changes: float) -> AlarmSettings:
    return PLAN.model_copy(update=changes)


@pytest.mark.parametrize(
    ("kind", "field", "share"),
    [
        ("format_collapsed", "valid_share", PLAN.collapse),
        ("length_collapsed", "tokens_per_rollout", PLAN.collapse),
        ("searches_collapsed", "searches_per_rollout", PLAN.collapse),
        ("entropy_collapsed", "entropy", PLAN.entropy_collapse),
    ],
)
def test_each_figure_that_collapses(kind: str, field: str, share: float) -> None:
    was = getattr(HEALTHY, field)
    below, above = (replace(HEALTHY, **{field: was * share * factor}) for factor in (0.99, 1.01))
    (alarm,) = find_collapses([HEALTHY] * 3, [below] * 3, 7, PLAN)
    assert (alarm.kind, alarm.iteration) == (kind, 7)
    assert (alarm.value, alarm.compared_with) == (pytest.approx(was * share * 0.99), pytest.approx(was))
    assert alarm.kind in ALARMS
    assert find_collapses([HEALTHY] * 3, [above] * 3, 7, PLAN) == []
    # The means count: one iteration of three that is healthy outweighs two that are barely below.
    assert find_collapses([HEALTHY] * 3, [below, below, HEALTHY], 7, PLAN) == []
    off = replace_plan(collapse=0, entropy_collapse=0)
    assert find_collapses([HEALTHY] * 3, [replace(HEALTHY, **{field: 0.0})] * 3, 7, off) == []


def test_a_figure_that_was_nothing_cannot_collapse() -> None:
    never = replace(HEALTHY, searches_per_rollout=0, valid_share=0, entropy=None)
    assert find_collapses([never], [never], 2, PLAN) == []
    assert find_collapses([HEALTHY], [replace(HEALTHY, entropy=None)], 2, PLAN) == []


@pytest.mark.parametrize(
    ("before", "now", "fires"),
    [(0.002, 0.021, True), (0.002, 0.019, False), (0.0, 0.0099, False), (0.0, 0.011, True), (0.02, 0.1, False)],
)
def test_the_gap_of_sampler_and_trainer(before: float, now: float, fires: bool) -> None:
    first, last = replace(HEALTHY, sampler_gap=before), replace(HEALTHY, sampler_gap=now)
    found = find_collapses([first], [last], 5, PLAN)
    assert [alarm.kind for alarm in found] == ["sampler_gap_grew"] * fires
    assert find_collapses([first], [last], 5, replace_plan(gap_growth=0)) == []
    assert find_collapses([first], [replace(last, sampler_gap=None)], 5, PLAN) == []
