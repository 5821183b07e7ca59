"""What the distillation's strength remembers of the iterations before: read off the last update's report."""

from __future__ import annotations

from flows.run.stage_files import StageFiles
from schemas.records.ledger import StageKey
from schemas.records.update import UpdateReport
from schemas.settings.root import Settings
from sdsearch.training.strength import StrengthState, carries_state, state_after
from storage.runs.ledger import Ledger


def strength_before(ledger: Ledger, files: StageFiles, settings: Settings, run: str, iteration: int) -> StrengthState:
    """Return what the update before an iteration left; nothing where none was, or where no setting looks at it.

    A fork has its source's last update as its own. DamagedArtifactError when the report cannot be read.
    """
    if not carries_state(settings.distillation) or iteration < 2:
        return StrengthState()
    updated = ledger.done(StageKey(run=run, iteration=iteration - 1, stage="update"))
    if updated is None:
        return StrengthState()
    (report,) = files.read(updated, "update", UpdateReport)
    return state_after(report.steps[-1])
