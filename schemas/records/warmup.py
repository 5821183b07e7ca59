"""A warm-up: what it was asked for, how far it is, and what it made."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from schemas.base import Record


class WarmupFigures(Record):
    """What a policy does on the evaluated questions, greedily."""

    run: str = Field(description="The evaluation, a run of the workspace.")
    valid_share: float = Field(description="Share of the rollouts in which every turn is well-formed.")
    em: float = Field(description="Exact match.")
    f1: float = Field(description="Token F1.")
    searches_per_rollout: float = Field(description="Mean number of searches.")


class WarmupRecord(Record):
    """The state of a warm-up; written anew at every checkpoint."""

    name: str = Field(description="Its name; its folder is warmups/NAME.")
    config: str = Field(description="Settings file, or its shipped name.")
    settings_json: str = Field(description="All settings that it was begun with.")
    status: Literal["training", "done"] = Field(default="training", description="Done: the policy is written.")
    steps_done: int = Field(default=0, ge=0, description="Optimiser steps of the newest checkpoint.")
    losses: tuple[float, ...] = Field(default=(), description="Loss before each step, nats a token.")
    seconds: float = Field(default=0.0, ge=0, description="Time of the steps done.")
    num_tokens: int = Field(default=0, ge=0, description="Tokens with a weight that the steps trained on.")
    before: WarmupFigures | None = Field(default=None, description="The policy that it starts from.")
    after: WarmupFigures | None = Field(default=None, description="The policy that it made.")
    policy_sha256: str = Field(default="", description="Hash of the folder's manifest, once it is written.")
    demonstrations_sha256: str = Field(
        default="", description="Hash of the rollouts that are shown; empty for the embedded world."
    )
    code_version: str = Field(description="Version of the program.")
    created_at: datetime = Field(description="When it was begun.")
    updated_at: datetime = Field(description="When this was written.")
