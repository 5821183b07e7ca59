"""A search index on disk: vectors, passages and encoder in one folder that is complete or absent.

The folder holds `vectors.faiss`, `passages.arrow`, `encoder.json`, `encoder.npz` and, written last,
`manifest.json` with the hashes that say of which corpus and which encoder it is.
"""

from __future__ import annotations

import errno
import json
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, overload

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from schemas.base import Record
from schemas.ledger import ArtifactRef
from schemas.passage import Passage
from storage.errors import StorageError
from storage.files import (
    failures_named,
    locked,
    make_folder,
    remove,
    remove_leftovers,
    sha256_file,
    sync,
    temporary_name,
    write_json_atomic,
)
from storage.workspace import Workspace

_VECTORS: Final = "vectors.faiss"
_PASSAGES: Final = "passages.arrow"
_ENCODER_JSON: Final = "encoder.json"
_ENCODER_ARRAYS: Final = "encoder.npz"
_MANIFEST: Final = "manifest.json"
_BATCH_ROWS: Final = 16_384
# A file of the size of Wikipedia's vectors would take minutes to hash at every start: its length must do.
_HASHED_BYTES: Final = 256 * 1024 * 1024
_SCHEMA: Final = pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.string())])


class IndexUnusableError(StorageError):
    """The index folder is missing, damaged, or of another corpus or encoder."""


class EncoderState(NamedTuple):
    """An encoder as plain values: a JSON object and named arrays (none of objects: nothing is pickled)."""

    description: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]


class IndexManifest(Record):
    """What an index folder is made of."""

    corpus_hash: str = Field(description="sha256 of the corpus file.")
    encoder_hash: str = Field(description="sha256 of what the encoder is made from.")
    num_passages: int = Field(ge=1)
    num_dimensions: int = Field(ge=1)
    files: tuple[ArtifactRef, ...] = Field(description="Every other file, its path relative to the folder.")


class StoredIndex(NamedTuple):
    """An opened index; vectors and passages stay on disk until they are read."""

    vectors: faiss.Index
    passages: StoredPassages
    encoder: EncoderState
    manifest: IndexManifest


class StoredPassages(Sequence[Passage]):
    """The passages of a memory-mapped Arrow file, made into records when asked for."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as file:
            self._batches = pa.ipc.open_file(file).read_all().to_batches()
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, row: int) -> Passage: ...

    @overload
    def __getitem__(self, row: slice) -> list[Passage]: ...

    def __getitem__(self, row: int | slice) -> Passage | list[Passage]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        number = row + len(self) if row < 0 else row
        if not 0 <= number < len(self):
            raise IndexError(f"passage {row} of {len(self)}")
        chunk = int(np.searchsorted(self._starts, number, side="right")) - 1
        batch, offset = self._batches[chunk], number - int(self._starts[chunk])
        return Passage(**{name: batch.column(name)[offset].as_py() for name in _SCHEMA.names})


@contextmanager
def building_alone(workspace: Workspace) -> Iterator[None]:
    """Let one process at a time build indexes of a workspace; another waits for its end."""
    with locked(workspace.index_lock):
        remove_leftovers(workspace.indexes)
        yield


def remove_unfinished(workspace: Workspace) -> None:
    """Remove what dead processes left of indexes; nothing while one is being built."""
    with locked(workspace.index_lock, wait=False) as is_held:
        if is_held:
            remove_leftovers(workspace.indexes)


def save_index(
    folder: Path,
    index: faiss.Index,
    passages: Iterable[Passage],
    encoder: EncoderState,
    corpus_hash: str,
    encoder_hash: str,
) -> IndexManifest:
    """Write an index folder durably; a reader sees all of it or none. An index that is there is replaced.

    The caller is `building_alone`. Raises ValueError when the numbers of vectors and passages differ,
    WriteFailedError when the system refuses.
    """
    with failures_named(folder):
        make_folder(folder.parent)
        building = folder.with_name(temporary_name(folder.name))
        building.mkdir()
        try:
            _write_vectors(building / _VECTORS, index)
            num_passages = _write_passages(building / _PASSAGES, passages)
            if num_passages != index.ntotal:
                raise ValueError(f"{num_passages} passages for an index of {index.ntotal} vectors; give one a vector")
            _write_encoder(building, encoder)
            manifest = IndexManifest(
                corpus_hash=corpus_hash,
                encoder_hash=encoder_hash,
                num_passages=num_passages,
                num_dimensions=index.d,
                files=tuple(_reference(path) for path in sorted(building.iterdir())),
            )
            write_json_atomic(building / _MANIFEST, manifest.model_dump(mode="json"), building)
            _put_in_place(building, folder)
        finally:
            if building.exists():
                remove(building)
    return manifest


def load_index(folder: Path, corpus_hash: str, encoder_hash: str) -> StoredIndex:
    """Open an index folder, its vectors and passages memory-mapped.

    Raises IndexUnusableError when it is missing or damaged, or was built from another corpus or by another encoder.
    """
    manifest = _read_manifest(folder)
    _check_hash(folder, "corpus", manifest.corpus_hash, corpus_hash)
    _check_hash(folder, "encoder", manifest.encoder_hash, encoder_hash)
    for reference in manifest.files:
        _check_file(folder, reference)
    try:
        return _open_files(folder, manifest)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise IndexUnusableError(
            f"{folder}: its files cannot be read ({reason}); delete the folder and build the index again"
        ) from error


def _open_files(folder: Path, manifest: IndexManifest) -> StoredIndex:
    # IO_FLAG_MMAP maps inverted lists only; this flag maps flat vectors too.
    vectors = faiss.read_index(str(folder / _VECTORS), faiss.IO_FLAG_MMAP_IFC)
    description = json.loads((folder / _ENCODER_JSON).read_text(encoding="utf-8"))
    with np.load(folder / _ENCODER_ARRAYS, allow_pickle=False) as arrays:
        encoder = EncoderState(description, dict(arrays))
    return StoredIndex(vectors, StoredPassages(folder / _PASSAGES), encoder, manifest)


def _write_vectors(path: Path, index: faiss.Index) -> None:
    """FAISS does not tell the system's reason, and not at all when only the last bytes did not get through."""
    reason = ""
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
    if reason or path.stat().st_size < index.ntotal * index.d * np.dtype(np.float32).itemsize:
        number = errno.EIO if shutil.disk_usage(path.parent).free else errno.ENOSPC
        raise OSError(number, reason or "the file is too short")


def _write_passages(path: Path, passages: Iterable[Passage]) -> int:
    num_passages = 0
    rows = (passage.model_dump() for passage in passages)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        for batch in _batches(rows):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=_SCHEMA))
            num_passages += len(batch)
    return num_passages


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, _BATCH_ROWS)):
        yield batch


def _write_encoder(folder: Path, encoder: EncoderState) -> None:
    pickled = [name for name, array in encoder.arrays.items() if array.dtype.hasobject]
    if pickled:
        raise ValueError(f"encoder arrays {', '.join(pickled)} hold Python objects, which would be pickled")
    write_json_atomic(folder / _ENCODER_JSON, dict(encoder.description), folder)
    with (folder / _ENCODER_ARRAYS).open("wb") as file:
        np.savez(file, allow_pickle=False, **encoder.arrays)


def _reference(path: Path) -> ArtifactRef:
    sync(path)
    return ArtifactRef(path=path.name, sha256=sha256_file(path), size_bytes=path.stat().st_size)


def _put_in_place(building: Path, folder: Path) -> None:
    former = folder.with_name(temporary_name(folder.name))
    sync(building)
    if folder.exists():
        folder.rename(former)
    building.rename(folder)
    sync(folder.parent)
    if former.exists():
        remove(former)


def _read_manifest(folder: Path) -> IndexManifest:
    path = folder / _MANIFEST
    try:
        return IndexManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise IndexUnusableError(f"{folder}: no index here ({_MANIFEST} is missing); build it first") from error
    except ValidationError as error:
        raise IndexUnusableError(
            f"{path}: not the manifest of an index ({error.error_count()} fields are wrong); delete the folder and "
            "build the index again"
        ) from error


def _check_hash(folder: Path, what: str, got: str, expected: str) -> None:
    if got != expected:
        raise IndexUnusableError(
            f"{folder}: the index is of another {what}: it was built with {what} {got[:16]}, this run has {what} "
            f"{expected[:16]}; build the index again, or name the {what} it was built with"
        )


def _check_file(folder: Path, reference: ArtifactRef) -> None:
    path = folder / reference.path
    size_bytes = path.stat().st_size if path.is_file() else -1
    hashed = size_bytes <= _HASHED_BYTES
    if size_bytes != reference.size_bytes or (hashed and sha256_file(path) != reference.sha256):
        found = "is missing" if size_bytes < 0 else f"has {size_bytes} bytes"
        raise IndexUnusableError(
            f"{path}: {found} and is not the file that was written ({reference.size_bytes} bytes, sha256 "
            f"{reference.sha256[:16]}); delete the folder and build the index again"
        )
