"""A search index on disk: vectors and encoder in one folder that is complete or absent.

The folder holds `vectors.faiss`, `encoder.json`, `encoder.npz` and, written last, `manifest.json` with the hashes that
say of which corpus, which encoder and which sort of index it is. The passages are the corpus's:
`storage/retrieval/corpora.py`.
"""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schemas.base import Record
from schemas.records.ledger import ArtifactRef
from storage.disk.files import locked, remove_leftovers
from storage.disk.folders import FolderKind, build_folder
from storage.errors import StorageError
from storage.retrieval.encoders import UNREADABLE, EncoderState, read_encoder, write_encoder
from storage.workspace import Workspace

logger = logging.getLogger(__name__)
T = TypeVar("T")
_VECTORS: Final = "vectors.faiss"
# Where the header of a flat index file counts its vectors, and, at its end, their numbers.
_COUNT_AT: Final = slice(8, 16)
_LENGTH_AT: Final = slice(-8, None)


class IndexUnusableError(StorageError):
    """The index folder is missing, damaged, or of another corpus or encoder."""


class IndexManifest(Record):
    """What an index folder is made of."""

    corpus_hash: str = Field(description="sha256 of the corpus file.")
    encoder_hash: str = Field(description="sha256 of what the encoder is made from.")
    index_hash: str = Field(description="sha256 of what the index was built with; empty for a flat one.")
    num_passages: int = Field(ge=1)
    num_dimensions: int = Field(ge=1)
    files: tuple[ArtifactRef, ...] = Field(description="Every other file, its path relative to the folder.")


class IndexIdentity(NamedTuple):
    """What an index is of; an index of anything else is refused."""

    corpus_hash: str
    encoder_hash: str
    index_hash: str = ""


class StoredIndex(NamedTuple):
    """An opened index; its vectors stay on disk until they are read."""

    vectors: faiss.Index
    encoder: EncoderState
    manifest: IndexManifest


class VectorBlocks(NamedTuple):
    """Vectors of an exact index, given block by block: they need not fit in memory."""

    num_vectors: int
    num_dimensions: int
    blocks: Iterable[NDArray[np.float32]]


_KIND: Final = FolderKind("index", IndexManifest, IndexUnusableError, "build it first", "build the index again")


@contextmanager
def building_alone(workspace: Workspace) -> Iterator[None]:
    """Let one process at a time build indexes of a workspace; another waits for its end."""
    with locked(workspace.index_lock):
        remove_leftovers(workspace.indexes)
        yield


def load_or_build(
    workspace: Workspace,
    folder: Path,
    load: Callable[[], T],
    build: Callable[[], object],
    prepare: Callable[[], object] = lambda: None,
) -> T:
    """Return what `load` gives of a folder, built first where it raises IndexUnusableError.

    `prepare` is what need not keep other processes from building.
    """
    try:
        return load()
    except IndexUnusableError:
        prepare()
    with building_alone(workspace):
        try:
            return load()  # Another process may have built it in the meantime.
        except IndexUnusableError as error:
            if folder.exists():
                logger.warning("the index is built again: %s", error)
        build()
        return load()


def remove_unfinished(workspace: Workspace) -> None:
    """Remove what dead processes left of corpora and indexes; nothing of what is being made."""
    for lock, folder in ((workspace.index_lock, workspace.indexes), (workspace.corpus_lock, workspace.corpora)):
        with locked(lock, wait=False) as is_held:
            if is_held:
                remove_leftovers(folder)


def save_index(
    folder: Path, vectors: faiss.Index | VectorBlocks, encoder: EncoderState, identity: IndexIdentity
) -> IndexManifest:
    """Write an index folder durably; a reader sees all of it or none. An index that is there is replaced.

    The caller is `building_alone`. Raises ValueError when there are fewer or more vectors than was said,
    WriteFailedError when the system refuses.
    """
    with build_folder(folder) as building:
        path = building.path / _VECTORS
        if isinstance(vectors, VectorBlocks):
            num_vectors, num_dimensions = vectors.num_vectors, vectors.num_dimensions
            _write_flat(path, vectors)
        else:
            num_vectors, num_dimensions = vectors.ntotal, vectors.d
            _write_index(path, vectors)
        write_encoder(building.path, encoder)
        manifest = IndexManifest(
            **identity._asdict(),
            num_passages=num_vectors,
            num_dimensions=num_dimensions,
            files=building.references(),
        )
        building.write_manifest(manifest)
    return manifest


def load_index(folder: Path, identity: IndexIdentity) -> StoredIndex:
    """Open an index folder, its vectors memory-mapped.

    Raises IndexUnusableError when it is missing or damaged, or was built from another corpus, by another encoder, or
    with other settings.
    """
    manifest = _KIND.read_manifest(folder)
    check_hash(folder, "corpus", manifest.corpus_hash, identity.corpus_hash)
    check_hash(folder, "encoder", manifest.encoder_hash, identity.encoder_hash)
    check_hash(folder, "sort", manifest.index_hash, identity.index_hash)
    for reference in manifest.files:
        _KIND.check_file(folder, reference)
    try:
        # IO_FLAG_MMAP maps inverted lists only; this flag maps flat vectors, graphs and lists.
        vectors = faiss.read_index(str(folder / _VECTORS), faiss.IO_FLAG_MMAP_IFC)
        stored = StoredIndex(vectors, read_encoder(folder), manifest)
    except UNREADABLE as error:
        raise _KIND.unreadable(folder, error) from error
    if (vectors.ntotal, vectors.d) != (manifest.num_passages, manifest.num_dimensions):
        raise IndexUnusableError(
            f"{folder}: the index holds {vectors.ntotal} vectors of {vectors.d} dimensions, its manifest says "
            f"{manifest.num_passages} of {manifest.num_dimensions}; delete the folder and build the index again"
        )
    return stored


def _write_index(path: Path, index: faiss.Index) -> None:
    """FAISS does not tell the system's reason, and not at all when only the last bytes did not get through."""
    try:
        faiss.write_index(index, str(path))
        num_written = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC).ntotal
    except RuntimeError as error:
        number = errno.EIO if shutil.disk_usage(path.parent).free else errno.ENOSPC
        raise OSError(number, str(error).splitlines()[0]) from error
    assert num_written == index.ntotal


def _write_flat(path: Path, vectors: VectorBlocks) -> None:
    """Write the file that FAISS would write of an exact index, without holding the index in memory."""
    num_written = 0
    with path.open("wb") as file:
        file.write(_flat_header(vectors.num_vectors, vectors.num_dimensions))
        for block_ND in vectors.blocks:
            if block_ND.shape[1] != vectors.num_dimensions:
                raise ValueError(f"vectors of {block_ND.shape[1]} dimensions for an index of {vectors.num_dimensions}")
            file.write(np.ascontiguousarray(block_ND, dtype=np.float32).data)
            num_written += len(block_ND)
    if num_written != vectors.num_vectors:
        raise ValueError(f"{vectors.num_vectors} passages for an index of {num_written} vectors; give one per vector")


def _flat_header(num_vectors: int, num_dimensions: int) -> bytes:
    header = bytearray(faiss.serialize_index(faiss.IndexFlatIP(num_dimensions)).tobytes())
    header[_COUNT_AT] = num_vectors.to_bytes(8, "little")
    header[_LENGTH_AT] = (num_vectors * num_dimensions).to_bytes(8, "little")
    return bytes(header)


def check_hash(folder: Path, what: str, got: str, expected: str) -> None:
    """Raise IndexUnusableError, naming both, when an index is of something else than was asked for."""
    if got != expected:
        raise IndexUnusableError(
            f"{folder}: the index is of another {what}: it was built with {what} {got[:16]}, this run has {what} "
            f"{expected[:16]}; build the index again, or name the {what} it was built with"
        )
