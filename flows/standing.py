"""How a run stands, as its record tells it: running, done, failed or interrupted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from flows.stores import Stores
from schemas.ledger import RunStatus
from storage.errors import RunLockedError, StorageError
from storage.shield import finishing

logger = logging.getLogger(__name__)


@contextmanager
def standing(stores: Stores, run: str) -> Iterator[None]:
    """Have the run's record and the database say that it is worked on, and at the end what came of it.

    The caller holds the run's lock.
    """
    _set_status(stores, run, "running")
    try:
        stores.index.catch_up(run)
        yield
    except RunLockedError:
        raise  # Another process has the run now: its record is not ours to write.
    except BaseException as error:
        # Whatever stops the run shows in its record and goes on its way; what is no Exception is an interrupt.
        with finishing():
            _mark_stopped(stores, run, "failed" if isinstance(error, Exception) else "interrupted")
        raise
    _set_status(stores, run, "done")
    stores.index.settle(run)


def _mark_stopped(stores: Stores, run: str, status: RunStatus) -> None:
    """Note how a run ended; what stopped it, a full disk say, may prevent that, and is what people must be told."""
    try:
        _set_status(stores, run, status)
        stores.index.flush()
    except StorageError as error:
        logger.warning("run '%s' could not be marked as %s: %s", run, status, error)


def _set_status(stores: Stores, run: str, status: RunStatus) -> None:
    record = stores.ledger.get_run(run)
    stores.update_run(record.model_copy(update={"status": status, "updated_at": datetime.now(UTC)}))
