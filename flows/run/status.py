"""How a run stands, as its record tells it: running, done, failed or interrupted; its lock says whether it lives."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from flows.console.terminal import format_seconds
from schemas.records.ledger import RunRecord, RunStatus
from storage.disk.signals import signals_deferred
from storage.errors import RunLockedError, StorageError
from storage.runs.lock import STALE_AFTER_S, lock_holder
from storage.storage import Storage
from storage.workspace import Workspace

logger = logging.getLogger(__name__)


@contextmanager
def tracked_status(storage: Storage, run: str) -> Iterator[None]:
    """Have the run's record and the database say that it is worked on, and at the end what came of it.

    The caller holds the run's lock.
    """
    _set_status(storage, run, "running")
    try:
        storage.sync.catch_up(run)
        yield
    except RunLockedError:
        raise  # Another process has the run now: its record is not ours to write.
    except BaseException as error:
        # Whatever stops the run shows in its record and goes on its way; what is no Exception is an interrupt.
        with signals_deferred():
            _mark_stopped(storage, run, "failed" if isinstance(error, Exception) else "interrupted")
        raise
    _set_status(storage, run, "done")
    storage.sync.settle(run)


def shown_status(workspace: Workspace, record: RunRecord) -> str:
    """Return how a run stands now: a record that says running is believed while somebody holds the run's lock."""
    if record.status != "running":
        return record.status
    holder = lock_holder(workspace, record.run)
    if holder is None:
        return "dead; resume"
    if holder.silent_s < STALE_AFTER_S:
        return "running"
    return f"silent for {format_seconds(holder.silent_s)} on {holder.host}"


def _mark_stopped(storage: Storage, run: str, status: RunStatus) -> None:
    """Note how a run ended; what stopped it, a full disk say, may prevent that, and is what people must be told."""
    try:
        _set_status(storage, run, status)
        storage.sync.flush()
    except StorageError as error:
        logger.warning("run '%s' could not be marked as %s: %s", run, status, error)


def _set_status(storage: Storage, run: str, status: RunStatus) -> None:
    record = storage.ledger.get_run(run)
    storage.update_run(record.model_copy(update={"status": status, "updated_at": datetime.now(UTC)}))
