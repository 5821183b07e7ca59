"""Supervised training before RL, for a model that does not know the protocol: `sdsearch warmup`."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from schemas.base import Fraction, Positive, Section

WORLD_DEMONSTRATIONS: Final = "world"


class WarmupSettings(Section):
    """What `sdsearch warmup` trains on, and for how long; a training does not read it (ours)."""

    demonstrations: Annotated[str, Field(min_length=1)] = Field(
        default=WORLD_DEMONSTRATIONS,
        description="'world': scripted searches in the embedded world; else the name of a run, or the folder of "
        "`sdsearch export --rollouts` with a '/' in it (./NAME), whose CORRECT rollouts are shown.",
    )
    steps: Positive = Field(default=200, description="Optimiser steps.")
    learning_rate: float = Field(
        default=1e-4, gt=0, description="Peak; it rises over the first tenth and falls in the second half."
    )
    tokens_per_batch: Positive = Field(default=4096, description="Tokens of a step's demonstrations, padding included.")
    block_share: Fraction = Field(default=0.3, description="Share of the demonstrations that begin with a block.")
    checkpoint_every: Positive = Field(default=50, description="Steps after which a stopped warm-up can go on.")

    @property
    def shows_export(self) -> bool:
        """True when demonstrations are those of a folder: no run's name has a '/'."""
        return "/" in self.demonstrations
