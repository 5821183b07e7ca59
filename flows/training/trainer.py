"""Who holds the trained weights: the port that the teacher and update stages call, and this process behind it."""

from __future__ import annotations

from typing import Protocol

from flows.run.live import Runtime
from flows.run.stage_files import StageFiles
from flows.training.stages.teacher import teach
from flows.training.stages.update import train
from schemas.records.ledger import ArtifactRef, StageRecord


class Trainer(Protocol):
    """The process, or the processes together, that hold the policy's weights, its optimiser and its reference.

    A call is the whole work of a stage. Records of stages go in and references to files come out, which can be handed
    to any process; `attempt` is the attempt that the files belong to. Weights are handed over as checkpoints: a stage
    of iteration n begins from version n - 1, and an update writes version n.
    """

    @property
    def num_ranks(self) -> int:
        """How many processes do the work together."""
        ...

    def compute_teacher(self, attempt: StageRecord, sampled: StageRecord, blocks: StageRecord) -> list[ArtifactRef]:
        """Write the teacher's distributions, the pointers into them, and the credit of each distilled token."""
        ...

    def update_weights(
        self, attempt: StageRecord, sampled: StageRecord, scored: StageRecord, targets: StageRecord
    ) -> list[ArtifactRef]:
        """Take the iteration's optimiser steps; write the new version's checkpoint and the report of the steps.

        Raises UserError, and the weights stay as they were, for a step that is not finite.
        """
        ...

    def close(self) -> None:
        """End what was started for the work."""
        ...


class InProcessTrainer:
    """A `Trainer` in the run's own process, on the policy that also samples."""

    num_ranks = 1

    def __init__(self, live: Runtime, files: StageFiles) -> None:
        self._live = live
        self._files = files

    def compute_teacher(self, attempt: StageRecord, sampled: StageRecord, blocks: StageRecord) -> list[ArtifactRef]:
        """While alpha is zero no pass is made, and what is written is empty."""
        return teach(self._live, self._files, attempt, sampled, blocks)

    def update_weights(
        self, attempt: StageRecord, sampled: StageRecord, scored: StageRecord, targets: StageRecord
    ) -> list[ArtifactRef]:
        """Errors as of `Trainer`."""
        return train(self._live, self._files, attempt, sampled, scored, targets)

    def close(self) -> None:
        """Nothing was started."""


def open_trainer(live: Runtime, files: StageFiles) -> Trainer:
    """Return who trains by the settings: this process, or ranks that are started when a stage first needs them."""
    if live.settings.distributed.ranks == 1:
        return InProcessTrainer(live, files)
    # torch's launcher is loaded for runs that start ranks alone.
    from flows.training.ranks.trainer import RankedTrainer

    return RankedTrainer(live)
