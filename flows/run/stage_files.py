"""The files of a run's stages as records: what an iteration wrote or read is not read from the disk again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from schemas.base import Record
from schemas.records.ledger import ArtifactRef, StageKey, StageRecord
from storage.database.stage_rows import file_of
from storage.runs.artifacts import ArtifactStore

R = TypeVar("R", bound=Record)


class StageFiles:
    """Reads and writes the records of stages; they are frozen, so one list serves all readers."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts
        self._recent: dict[str, list[Any]] = {}

    def write(self, key: StageKey, name: str, record_type: type[R], records: Sequence[R]) -> ArtifactRef:
        """Write a stage's file and keep its records for the stages after it."""
        ref = self._artifacts.write_records(key, name, record_type, records)
        self._recent[ref.sha256] = list(records)
        return ref

    def read(self, record: StageRecord, name: str, record_type: type[R]) -> list[R]:
        """Return the records of a done stage's file; DamagedArtifactError when it cannot be read."""
        ref = file_of(record, name)
        if ref.sha256 not in self._recent:
            self._recent[ref.sha256] = self._artifacts.read_records(ref, record_type)
        return self._recent[ref.sha256]

    def forget(self) -> None:
        """Free the memory of the records that an iteration read and wrote."""
        self._recent.clear()
