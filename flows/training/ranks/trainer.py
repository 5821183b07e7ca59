"""A `Trainer` whose work several ranks do together."""

from __future__ import annotations

from flows.run.live import Runtime
from flows.training.ranks.launch import RankPlace, Ranks
from flows.training.stages.teacher import teach
from flows.training.stages.update import train
from schemas.records.ledger import ArtifactRef, StageRecord


class RankedTrainer:
    """Has ranks on this machine do the stages' work; they hold the weights from their first stage on."""

    def __init__(self, live: Runtime) -> None:
        self.num_ranks = live.settings.distributed.ranks
        place = RankPlace(live.storage.workspace.root.resolve(), live.run, live.source)
        self._ranks = Ranks(live.settings, place, live.reporter.stage_progress)

    def compute_teacher(self, attempt: StageRecord, sampled: StageRecord, blocks: StageRecord) -> list[ArtifactRef]:
        """Errors as of `Ranks.do`."""
        return self._ranks.do(teach.__name__, [attempt, sampled, blocks])

    def update_weights(
        self, attempt: StageRecord, sampled: StageRecord, scored: StageRecord, targets: StageRecord
    ) -> list[ArtifactRef]:
        """Errors as of `Trainer` and `Ranks.do`."""
        return self._ranks.do(train.__name__, [attempt, sampled, scored, targets])

    def close(self) -> None:
        """End the ranks."""
        self._ranks.close()
