"""What says that a run goes wrong: figures of iterations and evaluations in, sentences out.

A run is compared with itself: an evaluation with the best one before, on the same questions; the last iterations with
the first ones. So nothing depends on the model, the data or the scale of a figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final, NamedTuple

from schemas.records.ledger import RunWarning, WarningKind
from schemas.settings.alarms import AlarmSettings

ALARMS: Final[tuple[WarningKind, ...]] = (
    "em_fell",
    "format_collapsed",
    "length_collapsed",
    "searches_collapsed",
    "entropy_collapsed",
    "sampler_gap_grew",
)
"""The kinds of warnings that are alarms."""


@dataclass(frozen=True)
class Vitals:
    """What an iteration's rollouts and its update say of the policy's health; None where no token was read."""

    valid_share: float
    tokens_per_rollout: float
    searches_per_rollout: float
    entropy: float | None
    sampler_gap: float | None  # k3 of sampler and trainer in the first optimiser step, nats per token


class Evaluated(NamedTuple):
    """An evaluation: the updates before it, and the EM of each question."""

    updates: int
    em: Mapping[str, float]

    @property
    def mean(self) -> float:
        """EM over all questions."""
        return fmean(self.em.values())


class _Falling(NamedTuple):
    kind: WarningKind
    what: str
    share: float
    value: Callable[[Vitals], float | None]


def find_fall(evaluations: Sequence[Evaluated], settings: AlarmSettings) -> RunWarning | None:
    """Return an alarm when the last evaluation is below the best one by more than its noise; None where it is not.

    Both answer the same questions. If nothing had changed, a question that one of them gets right would be as likely
    the one's as the other's: the fall in standard errors is sum(d) / sqrt(sum(d²)) over the differences d (McNemar's
    statistic for an EM of 0 or 1). Eight questions cannot exceed 2.8, so small evaluations give no false alarm.
    """
    if not settings.em_fall or len(evaluations) < 2:
        return None
    *before, last = evaluations
    best = max(before, key=lambda each: (each.mean, -each.updates))
    differences = [em - last.em[key] for key, em in best.em.items() if key in last.em]
    squares = sum(difference**2 for difference in differences)
    fall = sum(differences) / math.sqrt(squares) if squares else 0.0
    if fall <= settings.em_fall:
        return None
    return RunWarning(
        kind="em_fell",
        iteration=last.updates,
        value=last.mean,
        compared_with=best.mean,
        text=f"dev EM fell from {best.mean:.3f} after {best.updates} updates to {last.mean:.3f} after {last.updates}, "
        f"{fall:.1f} standard errors on the same questions; lower update.learning_rate, or let distillation.schedule "
        "fall",
    )


def find_collapses(
    first: Sequence[Vitals], last: Sequence[Vitals], iteration: int, settings: AlarmSettings
) -> list[RunWarning]:
    """Return an alarm for each figure whose mean over `last`, which ends with `iteration`, left that over `first`."""
    falling = (
        _Falling("format_collapsed", "the share of valid rollouts", settings.collapse, lambda v: v.valid_share),
        _Falling("length_collapsed", "sampled tokens per rollout", settings.collapse, lambda v: v.tokens_per_rollout),
        _Falling("searches_collapsed", "searches per rollout", settings.collapse, lambda v: v.searches_per_rollout),
        _Falling("entropy_collapsed", "the policy's entropy", settings.entropy_collapse, lambda v: v.entropy),
    )
    found = [_collapse(each, first, last, iteration) for each in falling]
    found.append(_growth(first, last, iteration, settings))
    return [warning for warning in found if warning]


def _collapse(falling: _Falling, first: Sequence[Vitals], last: Sequence[Vitals], iteration: int) -> RunWarning | None:
    was, now = _mean(map(falling.value, first)), _mean(map(falling.value, last))
    if was is None or now is None or not now < falling.share * was:
        return None
    return RunWarning(
        kind=falling.kind,
        iteration=iteration,
        value=now,
        compared_with=was,
        text=f"{falling.what} fell from {was:.3g} in the run's first {len(first)} iterations to {now:.3g} in the last "
        f"{len(last)}; look at rollouts of iteration {iteration}, and lower update.learning_rate or raise "
        "grpo.kl_coefficient",
    )


def _growth(
    first: Sequence[Vitals], last: Sequence[Vitals], iteration: int, settings: AlarmSettings
) -> RunWarning | None:
    was, now = _mean(v.sampler_gap for v in first), _mean(v.sampler_gap for v in last)
    if not settings.gap_growth or was is None or now is None or now < settings.smallest_gap:
        return None
    if now <= settings.gap_growth * was:
        return None
    return RunWarning(
        kind="sampler_gap_grew",
        iteration=iteration,
        value=now,
        compared_with=was,
        text=f"the gap of sampler and trainer grew from {was:.2g} to {now:.2g} nats per token (sampler_kl_first_step "
        "in v_iterations): what is trained on is another policy's; check the sampler's weights and dtype, and see "
        "model.check_tolerance",
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
