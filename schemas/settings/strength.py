"""How strong the distillation is, and how its strength falls over a run; marks as in schemas.settings.root."""

from __future__ import annotations

import math
from typing import Annotated, Literal, assert_never

from pydantic import Field

from schemas.base import Fraction, Positive, Section

Smoothing = Annotated[float, Field(ge=0, lt=1)]


class AlphaStrength(Section):
    """A fixed weight, distillation.alpha (paper)."""

    kind: Literal["alpha"] = Field(default="alpha", description="This strength: distillation.alpha, as it is (paper).")
    max_share: float = Field(
        default=1.0,
        gt=0,
        description="With distillation.clip 'own': the most that the norm of the distillation's gradient may be of the "
        "GRPO gradient's (ours).",
    )


class GradientShareStrength(Section):
    """A weight that makes the distillation's gradient a wanted share of GRPO's."""

    kind: Literal["gradient_share"] = Field(
        default="gradient_share", description="This strength: alpha follows the gradients, so that it carries over."
    )
    share: float = Field(
        default=0.5, gt=0, description="Norm of alpha times the distillation's gradient over norm of GRPO's (ours)."
    )
    every: Positive = Field(
        default=1,
        description="Iterations between measurements of both norms (a second backward pass); in one that is measured "
        "each optimiser step is, and alpha holds for that step already (ours).",
    )
    smoothing: Smoothing = Field(
        default=0.5,
        description="Share of the former value that the moving averages of both norms keep at a measurement (ours).",
    )
    min_alpha: float = Field(default=1e-6, gt=0, description="Smallest alpha, before the schedule (ours).")
    max_alpha: float = Field(default=1000.0, gt=0, description="Largest alpha, before the schedule (ours).")


StrengthSettings = Annotated[AlphaStrength | GradientShareStrength, Field(discriminator="kind")]


class ConstantSchedule(Section):
    """The same strength from the end of the warm-up to the end of the run (paper)."""

    kind: Literal["constant"] = Field(default="constant", description="This schedule (paper).")


class _Falling(Section):
    iterations: int = Field(
        default=0, ge=0, description="Iterations over which it falls, from the warm-up's end; 0: all that are left."
    )
    final: Fraction = Field(default=0.0, description="What is left of it afterwards; at 0 no teacher pass is made.")


class LinearSchedule(_Falling):
    """The strength falls in equal steps."""

    kind: Literal["linear"] = Field(default="linear", description="This schedule (ours).")


class CosineSchedule(_Falling):
    """The strength falls along half a cosine."""

    kind: Literal["cosine"] = Field(default="cosine", description="This schedule (ours).")


class RetireSchedule(Section):
    """The strength falls as the teacher's advantage over the student closes, and never rises again."""

    kind: Literal["retire"] = Field(default="retire", description="This schedule (ours).")
    gap: Literal["entropy", "log_ratio"] = Field(
        default="entropy",
        description="What closes: the student's entropy minus the teacher's, or the teacher's log-ratio in CORRECT "
        "rollouts minus that in INCORRECT ones; means over an iteration's distilled tokens.",
    )
    closed: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.25, description="Share of the largest gap so far at which nothing is left of the strength (ours)."
    )
    smoothing: Smoothing = Field(
        default=0.5, description="Share of the former value that the moving average of the gap keeps (ours)."
    )


ScheduleSettings = Annotated[
    ConstantSchedule | LinearSchedule | CosineSchedule | RetireSchedule, Field(discriminator="kind")
]


def planned_weight(schedule: ScheduleSettings, distilled: int, num_left: int) -> float:
    """Return what a schedule plans to leave of the strength, in [0, 1].

    distilled: the iteration, counted from 1 after the warm-up. num_left: the run's iterations after the warm-up. What
    'retire' leaves depends on what is measured (sdsearch.training.strength); it plans 1.
    """
    match schedule:
        case ConstantSchedule() | RetireSchedule():
            return 1.0
        case LinearSchedule():
            return 1.0 - (1.0 - schedule.final) * _progress(schedule, distilled, num_left)
        case CosineSchedule():
            left = 0.5 * (1.0 + math.cos(math.pi * _progress(schedule, distilled, num_left)))
            return schedule.final + (1.0 - schedule.final) * left
        case unknown:
            assert_never(unknown)


def _progress(schedule: _Falling, distilled: int, num_left: int) -> float:
    return min(1.0, (distilled - 1) / max(1, schedule.iterations or num_left))
