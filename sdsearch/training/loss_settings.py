"""What the loss and the passes for log-probabilities read of the settings."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.settings.root import DistillationSettings, GrpoSettings, Settings


@dataclass(frozen=True)
class LossSettings:
    """The objective of a run, and how its forward passes are cut to fit into memory."""

    grpo: GrpoSettings
    distillation: DistillationSettings
    temperature: float  # of the rollouts: the logits are divided by it
    max_tokens_per_microbatch: int
    head_chunk: int  # positions whose logits exist at a time

    @classmethod
    def of(cls, settings: Settings) -> LossSettings:
        """Take them from a run's settings."""
        return cls(
            grpo=settings.grpo,
            distillation=settings.distillation,
            temperature=settings.rollout.temperature,
            max_tokens_per_microbatch=settings.update.max_tokens_per_microbatch,
            head_chunk=settings.update.head_chunk,
        )
