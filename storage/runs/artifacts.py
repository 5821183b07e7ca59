"""A stage's files: records as parquet, tensors as safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.base import Record
from schemas.records.ledger import ArtifactRef, StageKey, StageRecord
from storage.disk.codecs import records_to_table, table_to_records
from storage.disk.files import write_atomic
from storage.disk.folders import MANIFEST
from storage.disk.manifest import verify_file, verify_folder
from storage.disk.tensors import load_tensors, save_tensors
from storage.errors import DamagedArtifactError, RecordMismatchError, WorkspaceError
from storage.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

R = TypeVar("R", bound=Record)
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


class ArtifactStore:
    """Writes and reads the files below `artifacts/`; a file appears whole or not at all.

    A second attempt at a stage replaces a file of the same name atomically.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def write_records(self, key: StageKey, name: str, record_type: type[R], records: Sequence[R]) -> ArtifactRef:
        """Write records to NAME.parquet in the stage's folder."""
        place = self._place(key, f"{name}.parquet")
        return write_atomic(place, lambda path: write_parquet(path, record_type, records), self.workspace.root)

    def read_records(self, ref: ArtifactRef, record_type: type[R]) -> list[R]:
        """Read the records of a parquet file.

        Raises DamagedArtifactError for a missing or broken file, RecordMismatchError for other records.
        """
        path = self.path(ref)
        table = _read_table(path)
        try:
            return table_to_records(record_type, table)
        except RecordMismatchError as error:
            raise RecordMismatchError(f"{path}: {error}") from error

    def read_field(self, ref: ArtifactRef, name: str, record_type: type[R]) -> list[R]:
        """Read of a file's records one field alone, which is a record itself; DamagedArtifactError as above."""
        rows = _read_table(self.path(ref), [name]).column(name).to_pylist()
        return [record_type.model_validate(row) for row in rows]

    def write_tensors(self, key: StageKey, name: str, tensors: Mapping[str, Tensor]) -> ArtifactRef:
        """Write named tensors to NAME.safetensors in the stage's folder."""
        place = self._place(key, f"{name}.safetensors")
        return write_atomic(place, lambda path: save_tensors(path, tensors), self.workspace.root)

    def read_tensors(self, ref: ArtifactRef) -> dict[str, Tensor]:
        """Read the tensors of a safetensors file; DamagedArtifactError when it is missing or broken."""
        return load_tensors(self.path(ref))

    def verify(self, ref: ArtifactRef) -> None:
        """Raise DamagedArtifactError, naming the file, when its bytes are not the ones that `ref` hashed.

        A reference to a manifest stands for its folder: every file that it lists is verified too.
        """
        path = self.path(ref)
        verify_file(path, ref.sha256, ref.size_bytes)
        if path.name == MANIFEST:
            verify_folder(path.parent)

    def verify_outputs(self, record: StageRecord) -> None:
        """Raise DamagedArtifactError, naming the file, when one of a stage's files is missing or altered."""
        for output in record.outputs:
            self.verify(output)

    def path(self, ref: ArtifactRef) -> Path:
        """Return the absolute path of a referenced file; WorkspaceError when it leads out of the workspace."""
        return self.workspace.resolve(ref.path)

    def _place(self, key: StageKey, file_name: str) -> Path:
        if not _FILE_NAME.fullmatch(file_name):
            raise WorkspaceError(
                f"file name {file_name!r} cannot be used: a name has letters, digits, '.', '_' and '-'"
            )
        return self.workspace.stage_folder(key) / file_name


def _read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        # A dataset reader would add the folders run=, iteration=, stage= as columns.
        return pq.ParquetFile(path).read(columns)
    except (OSError, pa.ArrowException) as error:
        raise DamagedArtifactError(
            f"{path} cannot be read as parquet ({error}); run the stage that wrote it again"
        ) from error


def write_parquet(path: Path, record_type: type[R], records: Sequence[R]) -> None:
    """Write records to a parquet file; the same records give the same bytes."""
    pq.write_table(records_to_table(record_type, records), path, compression="zstd")
