"""The numbers of a run's iterations, as people are shown them while it works."""

from __future__ import annotations

from storage.database.sync import WAIT_S
from storage.errors import DatabaseBusyError
from storage.storage import Storage

_ROWS = "SELECT * FROM v_iterations WHERE run = $run AND iteration BETWEEN $first AND $last ORDER BY iteration"


def iteration_numbers(storage: Storage, run: str, first: int, last: int) -> dict[int, dict[str, float]]:
    """Return the numbers in the rows of `v_iterations`, by iteration; none while another process keeps the database."""
    if not storage.sync.flush():
        return {}
    try:
        rows = storage.database.query(_ROWS, {"run": run, "first": first, "last": last}, WAIT_S).to_pylist()
    except DatabaseBusyError:
        return {}
    return {
        row["iteration"]: {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        for row in rows
    }
