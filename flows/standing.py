"""How a run stands, as its record tells it: running, done, failed or interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from flows.stores import Stores
from schemas.ledger import RunStatus


@contextmanager
def standing(stores: Stores, run: str) -> Iterator[None]:
    """Have the run's record and the database say that it is worked on, and at the end what came of it.

    The caller holds the run's lock.
    """
    _set_status(stores, run, "running")
    try:
        stores.index.catch_up(run)
        yield
    except BaseException as error:
        # Whatever stops the run shows in its record and goes on its way; what is no Exception is an interrupt.
        _set_status(stores, run, "failed" if isinstance(error, Exception) else "interrupted")
        stores.index.flush()
        raise
    _set_status(stores, run, "done")
    stores.index.settle(run)


def _set_status(stores: Stores, run: str, status: RunStatus) -> None:
    record = stores.ledger.get_run(run)
    stores.update_run(record.model_copy(update={"status": status, "updated_at": datetime.now(UTC)}))
