"""What was said of a run, each kind once: kept in its record, so that a run that is resumed does not repeat it."""

from __future__ import annotations

from collections.abc import Callable

from schemas.records.ledger import RunWarning, WarningKind
from storage.storage import Storage


class Said:
    """The warnings of one run; the caller holds its lock. Each of `tell` is handed each one the first time it holds."""

    def __init__(self, storage: Storage, run: str, *tell: Callable[[RunWarning], None]) -> None:
        self._storage = storage
        self._run = run
        self._tell = tell

    def find(self, *kinds: WarningKind) -> RunWarning | None:
        """Return the first warning of these kinds that was said of the run, None where none was."""
        known = self._storage.ledger.get_run(self._run).warnings
        return next((warning for warning in known if warning.kind in kinds), None)

    def say(self, warning: RunWarning) -> None:
        """Keep a warning with the run and tell it."""
        record = self._storage.ledger.get_run(self._run)
        self._storage.update_run(record.model_copy(update={"warnings": (*record.warnings, warning)}))
        for tell in self._tell:
            tell(warning)
