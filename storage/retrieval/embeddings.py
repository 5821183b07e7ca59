"""The vectors of a corpus in shards: one .npy file each, made by whoever claims it, complete or absent.

    embeddings/<hash>/manifest.json  encoder.json  encoder.npz
                      shard-00007-of-00064.npy  shard-00007-of-00064.json

A shard is there when its .json is. Several processes, also on machines that share the folder, may take shards; a claim
is a file lock, which ends with its process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schemas.base import Record, hash_json
from schemas.records.ledger import ArtifactRef
from storage.disk.files import is_temporary, locked, sha256_file, write_atomic, write_json_atomic
from storage.disk.folders import MANIFEST, FolderKind, build_folder
from storage.errors import StorageError
from storage.retrieval.encoders import UNREADABLE, EncoderState, read_encoder, write_encoder
from storage.workspace import Workspace

VectorType = Literal["float32", "float16"]
PASSAGES_A_SHARD: Final = 100_000
_BLOCK_ROWS: Final = 8192


class EmbeddingsUnusableError(StorageError):
    """The shards of a corpus are missing, incomplete or damaged."""


class EmbeddingsIdentity(NamedTuple):
    """What vectors are of."""

    corpus_hash: str
    encoder_hash: str
    dtype: VectorType

    @property
    def folder_name(self) -> str:
        return hash_json(list(self))[:16]


class EmbeddingsManifest(Record):
    """What a folder of shards is of."""

    corpus_hash: str = Field(description="sha256 of the corpus file.")
    encoder_hash: str = Field(description="sha256 of what the encoder is made from.")
    dtype: VectorType = Field(description="Type of the vectors' numbers.")
    num_passages: int = Field(ge=1)
    num_dimensions: int = Field(ge=1)
    num_shards: int = Field(ge=1)
    files: tuple[ArtifactRef, ...] = Field(description="The encoder's files.")


class ShardManifest(Record):
    """A shard that is there."""

    number: int = Field(ge=0)
    first_row: int = Field(ge=0)
    num_rows: int = Field(ge=0)
    duration_s: float = Field(ge=0, description="Seconds that encoding took.")
    file: ArtifactRef


_KIND: Final = FolderKind(
    "embeddings",
    EmbeddingsManifest,
    EmbeddingsUnusableError,
    "make them: sdsearch corpus embed CONFIG",
    "embed the corpus again",
)


class Embeddings:
    """The shards of a corpus and an encoder; a `VectorSource` when all are there."""

    def __init__(self, folder: Path, locks: Path) -> None:
        """Open a folder; EmbeddingsUnusableError when there is none or it is damaged."""
        self.folder = folder
        self.manifest = _KIND.read_manifest(folder)
        for reference in self.manifest.files:
            _KIND.check_file(folder, reference)
        self._locks = locks

    @property
    def num_vectors(self) -> int:
        return self.manifest.num_passages

    @property
    def num_dimensions(self) -> int:
        return self.manifest.num_dimensions

    @cached_property
    def encoder(self) -> EncoderState:
        try:
            return read_encoder(self.folder)
        except UNREADABLE as error:
            raise _KIND.unreadable(self.folder, error) from error

    def rows_of(self, shard: int) -> range:
        """Return the rows of a shard."""
        total, shards = self.num_vectors, self.manifest.num_shards
        return range(shard * total // shards, (shard + 1) * total // shards)

    def missing(self) -> list[int]:
        """Return the numbers of the shards that are not there; a file of the wrong length is not."""
        return [number for number in range(self.manifest.num_shards) if self._shard(number) is None]

    @contextmanager
    def claimed(self, shard: int) -> Iterator[bool]:
        """Claim a shard; gives False when another process is making it."""
        with locked(self._locks / f"{self.folder.name}-{shard:05d}.lock", wait=False) as is_ours:
            if is_ours:
                for left in self.folder.glob(f".{self._name(shard)}.*"):
                    if is_temporary(left):
                        left.unlink()
            yield is_ours

    def write_shard(self, shard: int, blocks: Iterable[NDArray[np.float32]]) -> None:
        """Write a shard's vectors durably, in their order; the caller has claimed it.

        Raises ValueError for fewer or more vectors than it has rows, WriteFailedError when the system refuses.
        """
        rows, started = self.rows_of(shard), time.perf_counter()
        path = self.folder / f"{self._name(shard)}.npy"
        file = write_atomic(path, lambda temporary: self._fill(temporary, len(rows), blocks), self.folder)
        record = ShardManifest(
            number=shard, first_row=rows.start, num_rows=len(rows), duration_s=time.perf_counter() - started, file=file
        )
        write_json_atomic(path.with_suffix(".json"), record.model_dump(mode="json"), self.folder)

    def verify(self) -> None:
        """Hash every shard; EmbeddingsUnusableError for one that is missing or not what was written."""
        for number in range(self.manifest.num_shards):
            shard = self._shard(number)
            path = self.folder / f"{self._name(number)}.npy"
            if shard is None or sha256_file(path) != shard.file.sha256:
                raise EmbeddingsUnusableError(
                    f"{path}: the shard is missing or is not what was written; delete it and continue with: sdsearch "
                    "corpus embed CONFIG"
                )

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield (N, D) vectors, all of them in their order."""
        for vectors_ND in self._arrays:
            for start in range(0, len(vectors_ND), _BLOCK_ROWS):
                yield np.asarray(vectors_ND[start : start + _BLOCK_ROWS], dtype=np.float32)

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return (len(rows), D) vectors of the given rows."""
        found = np.empty((len(rows), self.num_dimensions), dtype=np.float32)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shards):
            chosen = shards == shard
            found[chosen] = self._arrays[shard][rows[chosen] - self._starts[shard]]
        return found

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.array([self.rows_of(shard).start for shard in range(self.manifest.num_shards)])

    @cached_property
    def _arrays(self) -> list[NDArray[Any]]:
        names = [self._name(shard) for shard in range(self.manifest.num_shards)]
        try:
            arrays = [np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names]
        except (OSError, ValueError) as error:
            raise _KIND.unreadable(self.folder, error) from error
        for shard, array in enumerate(arrays):
            if array.shape != (len(self.rows_of(shard)), self.num_dimensions):
                raise EmbeddingsUnusableError(
                    f"{self.folder / names[shard]}.npy holds vectors of the shape {array.shape}; "
                    f"expected {(len(self.rows_of(shard)), self.num_dimensions)}; delete it and embed again"
                )
        return arrays

    def _fill(self, path: Path, num_rows: int, blocks: Iterable[NDArray[np.float32]]) -> None:
        dtype, num_written = np.dtype(self.manifest.dtype), 0
        # Not a memory map to write to: where the disk is full, that kills the process.
        with path.open("wb") as file:
            header = {"descr": dtype.str, "fortran_order": False, "shape": (num_rows, self.num_dimensions)}
            np.lib.format.write_array_header_1_0(file, header)
            for block_ND in blocks:
                file.write(self._stored(block_ND, dtype).data)
                num_written += len(block_ND)
        if num_written != num_rows:
            raise ValueError(f"{num_written} vectors for a shard of {num_rows} rows; give one per row")

    def _stored(self, block_ND: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore"):  # It is found below.
            stored_ND = np.ascontiguousarray(block_ND, dtype=dtype)
        if not np.isfinite(stored_ND).all():
            raise EmbeddingsUnusableError(
                f"{self.folder}: vectors are not finite as {dtype}; set retrieval.vector_dtype = float32, or choose an "
                "encoder of unit vectors"
            )
        return stored_ND

    def _name(self, shard: int) -> str:
        return f"shard-{shard:05d}-of-{self.manifest.num_shards:05d}"

    def _shard(self, number: int) -> ShardManifest | None:
        path = self.folder / f"{self._name(number)}.json"
        try:
            shard = ShardManifest.model_validate_json(path.read_bytes())
            size_bytes = (self.folder / shard.file.path).stat().st_size
        except (OSError, ValueError):
            return None
        return shard if size_bytes == shard.file.size_bytes else None


def find_embeddings(workspace: Workspace, identity: EmbeddingsIdentity) -> Embeddings | None:
    """Return what there is of a corpus's shards, None when they were not begun."""
    folder = workspace.embeddings / identity.folder_name
    return Embeddings(folder, workspace.locks / "embeddings") if (folder / MANIFEST).exists() else None


def begin_embeddings(
    workspace: Workspace,
    identity: EmbeddingsIdentity,
    num_passages: int,
    num_shards: int | None,
    fit: Callable[[], tuple[EncoderState, int]],
) -> Embeddings:
    """Return a corpus's shards, begun where there are none: `fit` gives the encoder and its width, once.

    Raises EmbeddingsUnusableError when they were begun with another number of shards.
    """
    folder = workspace.embeddings / identity.folder_name
    with locked(workspace.locks / "embeddings" / f"{folder.name}.lock"):
        found = find_embeddings(workspace, identity)
        if found is None:
            _create(folder, identity, num_passages, num_shards or -(-num_passages // PASSAGES_A_SHARD), fit)
            found = Embeddings(folder, workspace.locks / "embeddings")
    if num_shards not in (None, found.manifest.num_shards):
        raise EmbeddingsUnusableError(
            f"{folder}: begun with {found.manifest.num_shards} shards, asked for {num_shards}; leave --shards out, or "
            "delete the folder to begin again"
        )
    return found


def _create(
    folder: Path,
    identity: EmbeddingsIdentity,
    num_passages: int,
    num_shards: int,
    fit: Callable[[], tuple[EncoderState, int]],
) -> None:
    encoder, num_dimensions = fit()
    with build_folder(folder) as building:
        write_encoder(building.path, encoder)
        manifest = EmbeddingsManifest(
            **identity._asdict(),
            num_passages=num_passages,
            num_dimensions=num_dimensions,
            num_shards=min(num_shards, num_passages),
            files=building.references(),
        )
        building.write_manifest(manifest)
