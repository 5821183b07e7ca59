"""The retries of an iteration as its other stages read them, which have no part in how they are sampled."""

from __future__ import annotations

from flows.run.stage_files import StageFiles
from schemas.records.ledger import StageRecord
from schemas.records.retry import RetriedGroup
from schemas.settings.root import Settings


def retries_of(files: StageFiles, settings: Settings, sampled: StageRecord) -> list[RetriedGroup]:
    """Return the retries that a sample stage stored; none where the settings ask for none."""
    return files.read(sampled, "retries", RetriedGroup) if settings.rollout.retries else []
