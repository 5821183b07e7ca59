"""Retries: further rollouts of a group without a CORRECT one, sampled with its hindsight block (rollout.retries)."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Record
from schemas.records.rollout import Rollout


class RetriedGroup(Record):
    """The retries of one group. They are no siblings: no figure of the group and no block counts them."""

    group_id: str = Field(description="The group, none of whose rollouts is CORRECT.")
    block_text: str = Field(description="The hindsight block that the policy read before the task prompt.")
    block_token_ids: tuple[int, ...] = Field(description="Its tokens; none where the context has no room for it.")
    rollouts: tuple[Rollout, ...] = Field(
        min_length=1,
        description="The retries; their places follow the siblings'. Their log-probabilities are with the block.",
    )
