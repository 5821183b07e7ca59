"""What a run's ledger holds, for tests that count attempts."""

from __future__ import annotations

from schemas.records.ledger import StageRecord
from storage.runs.ledger import Ledger


def attempts_of(ledger: Ledger, run: str) -> list[StageRecord]:
    """Return every attempt at a run's stages, in the order in which they began."""
    attempts = [attempt for _, history in ledger.histories(run) for attempt in history.attempts]
    return sorted(attempts, key=lambda record: (record.started_at, record.attempt))
