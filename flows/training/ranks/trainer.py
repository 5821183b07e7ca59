"""A `Trainer` whose work several ranks do together."""

from __future__ import annotations

from flows.run.live import Runtime
from flows.training.ranks.launch import RankPlace, Ranks
from flows.training.stages.teacher import teach
from flows.training.stages.update import train
from schemas.commands import command
from schemas.records.ledger import ArtifactRef, StageRecord
from schemas.settings.root import Settings


def _samples_elsewhere(settings: Settings) -> bool:
    """Tell whether the run's own process needs no weights: engines sample, and no turn is scored by the policy."""
    return settings.sampling.kind != "transformers" and settings.reward.turn == "none"


class RankedTrainer:
    """Has ranks do the stages' work, on this machine and on those that join; they hold the weights from then on."""

    def __init__(self, live: Runtime) -> None:
        self.num_ranks = live.settings.distributed.ranks
        place = RankPlace(live.storage.workspace.root.resolve(), live.run, live.source)
        self._ranks = Ranks(live.settings, place, live.reporter.stage_progress)
        if _samples_elsewhere(live.settings):
            live.policy.leave_weights_to(self._ranks.read)
        distributed = live.settings.distributed
        if distributed.nodes > 1:
            self._ranks.listen()
            others = "machine joins" if distributed.nodes == 2 else f"{distributed.nodes - 1} machines join"
            live.reporter.noted(
                f"another {others} with: {command('join', distributed.endpoint, workspace=place.workspace)}"
            )

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
