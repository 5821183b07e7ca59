"""Scores of rollouts and their group-relative advantages."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Record


class Score(Record):
    """What a rollout earned; `reward` is raw, `advantage` is relative to its group."""

    rollout_id: str
    group_id: str
    em: float = Field(ge=0, le=1, description="Exact match, best over the golden answers.")
    f1: float = Field(ge=0, le=1, description="Token F1, best over the golden answers.")
    valid_format: bool
    golden: tuple[tuple[bool, ...], ...] = Field(
        description="For each search in order and each of its passages: whether it contains a golden answer."
    )
    num_hits: int = Field(description="Passages retrieved over all searches.")
    num_golden_hits: int = Field(description="Retrieved passages that contain a golden answer.")
    reward: float
    advantage: float = Field(description="(reward - group mean) / scale.")
