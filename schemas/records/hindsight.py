"""Hindsight blocks: what the teacher sees and the student does not."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Record

Label = Literal["CORRECT", "INCORRECT"]


def label_outcome(metric: float, rho: float) -> Label:
    """CORRECT when the answer's F1 (or EM) exceeds rho; never read off the shaped reward (paper, section 3.2)."""
    return "CORRECT" if metric > rho else "INCORRECT"


class HindsightAttempt(Record):
    """One sibling in a block, or a rollout of an earlier iteration for the same question."""

    rollout_index: int = Field(ge=0, description="Its place among its siblings.")
    sampled_in: int | None = Field(
        default=None,
        description="Iteration that it was sampled in, where hindsight.memory adds it; empty: the block's own.",
    )
    label: Label | None = Field(description="CORRECT or INCORRECT; empty when the labels are switched off.")
    contents: tuple[str, ...] = Field(
        description="Its neutralised queries in order (masking = queries), or whatever else the masking "
        "keeps; as far as they fit."
    )


class HindsightBlock(Record):
    """The text put before the task prompt for the teacher.

    A block is shared by a whole group, or belongs to one rollout (`focal_rollout`), or to one turn of it
    (`focal_turn`), as the settings' masking and members ask.
    """

    group_id: str = Field(description="Its group.")
    focal_rollout: int | None = Field(
        description="Index of the rollout that the block serves; empty: every rollout of the group."
    )
    focal_turn: int | None = Field(description="Turn that the block serves; empty: every turn.")
    attempts: tuple[HindsightAttempt, ...] = Field(description="What the block shows of the siblings, in its order.")
    num_dropped_attempts: int = Field(ge=0, description="Attempts left out because not even their labels fitted.")
    num_shortened_attempts: int = Field(
        default=0, ge=0, description="Attempts whose contents were cut because the block was too long."
    )
    num_cut_tokens: int = Field(default=0, ge=0, description="Tokens that the whole block has more than this one.")
    homogeneous: bool = Field(description="True when all siblings, and what hindsight.memory adds, have one outcome.")
    outcomes: tuple[Label, ...] = Field(
        default=(),
        description="Each sibling's outcome, whatever labels the block shows; empty in blocks of earlier versions.",
    )
    text: str = Field(description="The block.")
    token_ids: tuple[int, ...] = Field(description="Its tokens.")
    contrast_text: str = Field(
        default="", description="The same block with the labels of hindsight.contrast; empty without a contrast."
    )
    contrast_token_ids: tuple[int, ...] = Field(default=(), description="The tokens of contrast_text.")
