"""The folders below `screens/`: what the turns of a run are worth, drawn once and shared by all screenings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow.parquet as pq

from schemas.base import Record
from schemas.records.screen import ScreenResults
from storage.disk.codecs import table_to_records
from storage.disk.files import write_atomic, write_bytes_atomic
from storage.errors import DamagedArtifactError
from storage.runs.artifacts import write_parquet
from storage.workspace import Workspace

R = TypeVar("R", bound=Record)
_RESULTS = "results.json"


class ScreenStore:
    """The files of one screening."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self._root = workspace.root
        self.folder = workspace.screen_folder(name)

    def find(self, name: str, record_type: type[R]) -> list[R] | None:
        """Return the records of a file, None where it is not there; DamagedArtifactError where it cannot be read."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            return table_to_records(record_type, pq.read_table(path))
        except (OSError, ValueError) as error:
            raise DamagedArtifactError(f"{path} cannot be read ({error}); remove it, it is made again") from error

    def write(self, name: str, record_type: type[R], records: Sequence[R]) -> Path:
        """Write a file, whole or not at all; WriteFailedError when it cannot be written."""
        path = self._path(name)
        write_atomic(path, lambda temporary: write_parquet(temporary, record_type, records), self._root)
        return path

    def write_results(self, results: ScreenResults) -> None:
        """Write what the table is made from."""
        write_bytes_atomic(self.folder / _RESULTS, results.model_dump_json(indent=1).encode() + b"\n", self._root)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"
