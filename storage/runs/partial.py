"""Pieces of a stage that is not done yet: what an attempt has finished, the next one need not do again.

A piece is the file `partial-NAME.INPUTS.SHA256.parquet` in the stage's folder. Its name says which inputs it was made
from and what its bytes must be, so that it counts from the moment in which it has its name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from schemas.base import Record
from schemas.records.ledger import ArtifactRef, StageRecord
from storage.disk.files import sha256_file, write_atomic
from storage.errors import DamagedArtifactError, RecordMismatchError
from storage.runs.artifacts import ArtifactStore, write_parquet

logger = logging.getLogger(__name__)
R = TypeVar("R", bound=Record)
_PREFIX = "partial-"


class PartialResults:
    """The pieces of an attempt; they serve later attempts with the same inputs, and go when the stage is done."""

    def __init__(self, artifacts: ArtifactStore, record: StageRecord) -> None:
        self._artifacts = artifacts
        self._record = record
        self._folder = artifacts.workspace.stage_folder(record.key)

    def read(self, name: str, record_type: type[R]) -> list[R] | None:
        """Return a piece's records, None when no attempt got so far or its file is damaged."""
        for path in sorted(self._folder.glob(f"{self._stem(name)}.*.parquet")):
            try:
                return self._artifacts.read_records(self._verified(path), record_type)
            except (DamagedArtifactError, RecordMismatchError) as error:
                logger.warning("%s of iteration %d: %s", self._record.stage, self._record.iteration, error)
        return None

    def write(self, name: str, record_type: type[R], records: Sequence[R]) -> None:
        """Make a piece durable."""
        write_atomic(
            self._folder / f"{self._stem(name)}.{{sha256}}.parquet",
            lambda path: write_parquet(path, record_type, records),
            self._artifacts.workspace.root,
        )

    def names(self) -> set[str]:
        """Return the names of the pieces with this attempt's inputs; whether they are whole is found at reading."""
        mark = f".{self._record.input_hash[:16]}."
        names = (path.name.removeprefix(_PREFIX) for path in self._folder.glob(f"{_PREFIX}*{mark}*.parquet"))
        return {name.partition(mark)[0] for name in names}

    def remove(self) -> None:
        """Remove all pieces: the stage is done."""
        for path in self._folder.glob(f"{_PREFIX}*.parquet"):
            path.unlink()

    def _stem(self, name: str) -> str:
        return f"{_PREFIX}{name}.{self._record.input_hash[:16]}"

    def _verified(self, path: Path) -> ArtifactRef:
        found, expected = sha256_file(path), path.name.split(".")[-2]
        if found != expected:
            raise DamagedArtifactError(f"{path} is damaged (its sha256 is {found}); this part is computed again")
        workspace = self._artifacts.workspace
        return ArtifactRef(path=workspace.relative(path), sha256=found, size_bytes=path.stat().st_size)
