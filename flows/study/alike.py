"""What the runs of a study have in common is done once: the evaluation of the weights that they begin with."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from flows.study.plan import PlannedRun
from schemas.records.ledger import StageKey
from storage.errors import StorageError
from storage.runs.forks import share_stage
from storage.runs.lock import RunLock
from storage.storage import Storage

logger = logging.getLogger(__name__)


def runs_alike(planned: Sequence[PlannedRun], plan: PlannedRun) -> tuple[str, ...]:
    """Return the study's other runs with the same seed: the evaluation of their start reads the same settings."""
    return tuple(other.run for other in planned if other.seed == plan.seed and other.run != plan.run)


def take_over_start(storage: Storage, run: str, others: Sequence[str]) -> None:
    """Give a run that was not begun the evaluation of its start that another one did, where there is one.

    It counts when its inputs turn out to be the run's own; otherwise it is done again.
    """
    key = StageKey(run=run, iteration=0, stage="evaluate")
    if storage.ledger.history(key).attempts:
        return
    for other in others:
        done = storage.ledger.done(key.model_copy(update={"run": other}))
        if done is not None and done.sampling is None:
            try:
                with RunLock(storage.workspace, run):
                    share_stage(storage.ledger, storage.artifacts, done, run)
            except StorageError as error:  # The evaluation is done again.
                logger.warning("the start of run '%s' is evaluated for run '%s' too: %s", other, run, error)
            return
