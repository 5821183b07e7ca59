"""What every pass over rollouts reads of the settings."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.settings.root import Settings


@dataclass(frozen=True)
class PassSettings:
    """The temperature of the distributions, and how passes are cut to fit into memory."""

    temperature: float  # of the rollouts: the logits are divided by it
    max_tokens_per_microbatch: int
    head_chunk: int  # positions whose logits exist at a time

    @staticmethod
    def of_passes(settings: Settings) -> tuple[float, int, int]:
        """Return these values of a run's settings, in this order."""
        return settings.rollout.temperature, settings.update.max_tokens_per_microbatch, settings.update.head_chunk
