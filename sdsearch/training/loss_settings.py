"""What the loss and the passes for log-probabilities read of the settings."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.settings.root import DistillationSettings, GrpoSettings, Settings
from sdsearch.model.pass_settings import PassSettings


@dataclass(frozen=True)
class LossSettings(PassSettings):
    """The objective of a run, beside what its passes read."""

    grpo: GrpoSettings
    distillation: DistillationSettings

    @classmethod
    def of(cls, settings: Settings) -> LossSettings:
        """Take them from a run's settings."""
        return cls(
            *cls.of_passes(settings),
            grpo=settings.grpo,
            distillation=settings.distillation,
        )
