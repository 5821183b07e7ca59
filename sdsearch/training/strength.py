"""The strength of the distillation from step to step: alpha by a wanted share of gradients, and what a schedule leaves.

What is carried from one optimiser step to the next stands in the step's report, so a run that is resumed or forked goes
on from there bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from schemas.records.teacher import QueryCredit
from schemas.records.update import StepReport
from schemas.settings.root import DistillationSettings, Settings
from schemas.settings.strength import AlphaStrength, GradientShareStrength, RetireSchedule

Gap = Literal["entropy", "log_ratio"]


@dataclass(frozen=True)
class StrengthState:
    """What was measured so far, smoothed; None where nothing was."""

    norm_grpo: float | None = None  # of the GRPO part's gradient
    norm_sd: float | None = None  # of L_SD's gradient, before alpha
    gap_kind: Gap | None = None
    gap: float | None = None
    largest_gap: float | None = None
    retired_to: float = 1.0  # what 'retire' leaves


@dataclass(frozen=True)
class Strength:
    """The strength in force in an optimiser step."""

    settings: DistillationSettings
    planned: float  # what warm-up and schedule leave by plan; 0 without distillation
    measures: bool  # whether this iteration's steps are measured
    state: StrengthState

    @property
    def weight(self) -> float:
        """What warm-up and schedule leave of the strength, in [0, 1]."""
        return self.planned * self.state.retired_to

    @property
    def alpha(self) -> float:
        """L_SD's weight: distillation.alpha, or what gives the wanted share, within its bounds; times `weight`.

        Until both norms have been measured it is distillation.alpha within the bounds.
        """
        match self.settings.strength:
            case AlphaStrength():
                return self.settings.alpha * self.weight
            case GradientShareStrength() as wanted:
                alpha, state = self.settings.alpha, self.state
                if state.norm_grpo is not None and state.norm_sd is not None:
                    alpha = wanted.share * state.norm_grpo / state.norm_sd
                return min(max(alpha, wanted.min_alpha), wanted.max_alpha) * self.weight
            case unknown:
                assert_never(unknown)

    @property
    def share(self) -> float:
        """The most that the SD part's norm may be of the GRPO part's where each is clipped on its own."""
        wanted = self.settings.strength
        return (wanted.max_share if isinstance(wanted, AlphaStrength) else wanted.share) * self.weight

    def with_norms(self, norm_grpo: float, norm_sd: float) -> Strength:
        """Return the strength after a measurement (`norm_sd` before alpha); one of zero or not finite changes nothing.

        Each norm's moving average begins at its first value: s <- b s + (1 - b) x, b = `smoothing`.
        """
        wanted = self.settings.strength
        if isinstance(wanted, AlphaStrength) or not (0 < norm_grpo < math.inf and 0 < norm_sd < math.inf):
            return self
        state = replace(
            self.state,
            norm_grpo=_smoothed(self.state.norm_grpo, norm_grpo, wanted.smoothing),
            norm_sd=_smoothed(self.state.norm_sd, norm_sd, wanted.smoothing),
        )
        return replace(self, state=state)


def carries_state(distillation: DistillationSettings) -> bool:
    """Whether anything that is measured in an iteration matters in the next."""
    return isinstance(distillation.strength, GradientShareStrength) or isinstance(distillation.schedule, RetireSchedule)


def state_after(step: StepReport) -> StrengthState:
    """Return the state that an optimiser step left, from its report."""
    return StrengthState(
        norm_grpo=step.smoothed_norm_grpo,
        norm_sd=step.smoothed_norm_sd,
        gap_kind=step.gap_kind,
        gap=step.smoothed_gap,
        largest_gap=step.largest_gap,
        retired_to=1.0 if step.retired_to is None else step.retired_to,
    )


def asks_teacher(settings: Settings, iteration: int, state: StrengthState) -> bool:
    """Whether an iteration has a teacher pass: alpha is not zero by plan, and the schedule has not retired it."""
    return settings.alpha_at(iteration) > 0 and _of_this_gap(settings.distillation, state).retired_to > 0


def begin_iteration(
    settings: Settings, iteration: int, state: StrengthState | None = None, gap: float | None = None
) -> Strength:
    """Return the strength with which an iteration's first step begins.

    gap: what was measured of this iteration's tokens, None where nothing was; 'retire' takes it in before the step.
    """
    distillation, wanted = settings.distillation, settings.distillation.strength
    state = _of_this_gap(distillation, state or StrengthState())
    if isinstance(distillation.schedule, RetireSchedule):
        state = retire(distillation.schedule, state, gap)
    distilled = iteration - distillation.warmup_iterations
    measures = isinstance(wanted, GradientShareStrength) and (
        (distilled - 1) % wanted.every == 0 or state.norm_grpo is None
    )
    planned = settings.planned_weight_at(iteration) if distillation.enabled else 0.0
    return Strength(distillation, planned, measures, state)


def retire(schedule: RetireSchedule, state: StrengthState, gap: float | None) -> StrengthState:
    """Return the state after an iteration's gap d was measured; without one nothing changes.

    D <- b D + (1 - b) d, M <- max(M, D), w <- min(w, clip((D / M - c) / (1 - c), 0, 1)), with b = `smoothing` and
    c = `closed`. D begins at the first gap and w at 1. While M is not above zero there is no gap that could close, and
    w stays. w never rises: at 0 the teacher is not asked any more, so that nothing could tell that it should.
    """
    if gap is None:
        return state
    smoothed = _smoothed(state.gap, gap, schedule.smoothing)
    largest = smoothed if state.largest_gap is None else max(state.largest_gap, smoothed)
    left = 1.0
    if largest > 0:
        left = min(1.0, max(0.0, (smoothed / largest - schedule.closed) / (1 - schedule.closed)))
    return replace(
        state,
        gap_kind=schedule.gap,
        gap=smoothed,
        largest_gap=largest,
        retired_to=min(state.retired_to, left),
    )


def measured_gap(kind: Gap, credit: Sequence[QueryCredit], correct: Collection[str]) -> float | None:
    """Return the gap over an iteration's distilled tokens, nats; None without the tokens that it takes.

    entropy: mean of student minus teacher entropy. log_ratio: mean of teacher minus student log-probability over the
    tokens of CORRECT rollouts (`correct` holds their ids), minus the same over INCORRECT ones.
    """
    match kind:
        case "entropy":
            return _mean([token.student_entropy - token.teacher_entropy for token in credit])
        case "log_ratio":
            ratios: dict[bool, list[float]] = {True: [], False: []}
            for token in credit:
                ratios[token.rollout_id in correct].append(token.teacher_logprob - token.student_logprob)
            of_correct, of_incorrect = _mean(ratios[True]), _mean(ratios[False])
            return None if of_correct is None or of_incorrect is None else of_correct - of_incorrect
        case unknown:
            assert_never(unknown)


def _of_this_gap(distillation: DistillationSettings, state: StrengthState) -> StrengthState:
    """Return the state without what a fork's source measured of another gap, or under another schedule."""
    schedule = distillation.schedule
    if isinstance(schedule, RetireSchedule) and state.gap_kind in (None, schedule.gap):
        return state
    return replace(state, gap_kind=None, gap=None, largest_gap=None, retired_to=1.0)


def _smoothed(former: float | None, value: float, kept: float) -> float:
    return value if former is None else kept * former + (1 - kept) * value


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
