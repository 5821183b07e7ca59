"""Scores of rollouts and their group-relative advantages."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Record


class RewardPart(Record):
    """One named part of a reward."""

    part: str = Field(description="Name of the part, such as f1 or format; a plugin names its own.")
    value: float = Field(
        allow_inf_nan=False,
        description="What it contributes; the reward is their sum, unless a plugin says another total.",
    )


class Score(Record):
    """What a rollout earned; `reward` is raw, `advantage` is relative to its group."""

    rollout_id: str = Field(description="Id of the rollout.")
    group_id: str = Field(description="Its group.")
    em: float = Field(ge=0, le=1, description="Exact match, 0 or 1, best over the golden answers.")
    f1: float = Field(ge=0, le=1, description="Token F1 in [0, 1], best over the golden answers.")
    valid_format: bool = Field(description="True when no turn was malformed and it ended with an answer.")
    golden: tuple[tuple[bool, ...], ...] = Field(
        description="For each search in order and each of its passages: whether it contains a golden answer."
    )
    num_hits: int = Field(description="Passages retrieved over all searches.")
    num_golden_hits: int = Field(description="Retrieved passages that contain a golden answer.")
    reward: float = Field(allow_inf_nan=False, description="Raw reward.")
    parts: tuple[RewardPart, ...] = Field(description="What the reward is made of, in its own order; never empty.")
    advantage: float = Field(description="Group-relative advantage: (reward - group mean) / scale.")
    filtered: bool = Field(
        default=False, description="True where grpo.filter leaves its group out of the policy loss and its KL."
    )
    answer_probabilities: tuple[float, ...] = Field(
        default=(),
        description="With reward.turn 'information_gain': how probable the golden answer was before each turn.",
    )
    turn_rewards: tuple[float, ...] = Field(
        default=(), description="What each turn earned: the gain in that probability, and the last one the reward."
    )
    turn_advantages: tuple[float, ...] = Field(
        default=(), description="Each turn's advantage, which its tokens then have instead; empty without turn rewards."
    )

    @property
    def has_advantage(self) -> bool:
        """Whether any of its tokens has an advantage that is not 0."""
        return any(self.turn_advantages) if self.turn_advantages else self.advantage != 0
