"""What a run watches that may go wrong while it trains; marks as in schemas.settings.root."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Fraction, Positive, Section


class AlarmSettings(Section):
    """When a run says that it goes wrong, and what it does then; none of it changes what an iteration computes."""

    on_alarm: Literal["warn", "stop", "rollback"] = Field(
        default="warn",
        description="Say it and continue; end the run; or go on as a fork from the best checkpoint on dev, with a "
        "lower learning rate (ours).",
    )
    em_fall: float = Field(
        default=3.0,
        ge=0,
        description="Alarm when dev EM is so many standard errors below the run's best, on the same questions; 0: off.",
    )
    collapse: Fraction = Field(
        default=0.5,
        description="Alarm when the share of valid rollouts, their length or their searches fall below this share of "
        "what they were at first; 0: off.",
    )
    entropy_collapse: Fraction = Field(
        default=0.1, description="Alarm when the policy's entropy falls below this share of what it was; 0: off."
    )
    gap_growth: float = Field(
        default=10.0,
        ge=0,
        description="Alarm when the gap of sampler and trainer is so many times what it was at first; 0: off.",
    )
    smallest_gap: float = Field(
        default=0.01, ge=0, description="Gaps below this many nats per token give no alarm (the engines' rounding)."
    )
    window: Positive = Field(
        default=3, description="Iterations of the run at first, and last, whose means are compared."
    )
    rollback_learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="With on_alarm 'rollback': what the fork's update.learning_rate is multiplied by."
    )
    max_rollbacks: Positive = Field(default=2, description="Rollbacks, one after another; the next alarm ends the run.")
