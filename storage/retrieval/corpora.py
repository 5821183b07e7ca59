"""Imported corpora: passages in a memory-mapped Arrow file, in a folder that is complete or absent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, overload

import numpy as np
import pyarrow as pa
from pydantic import Field

from schemas.base import Record
from schemas.records.ledger import ArtifactRef
from schemas.records.passage import Passage
from storage.disk.files import locked, remove_leftovers, write_json_atomic
from storage.disk.folders import MANIFEST, FolderKind, build_folder
from storage.errors import StorageError
from storage.workspace import Workspace

PASSAGES: Final = "passages.arrow"
_SCHEMA: Final = pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.string())])


class CorpusUnusableError(StorageError):
    """The folder of a corpus is missing or damaged."""


class CorpusManifest(Record):
    """What an imported corpus was made from."""

    source: str = Field(description="Name of the file that was imported, without its folder.")
    source_sha256: str = Field(description="sha256 of that file's bytes; identifies the corpus.")
    source_bytes: int = Field(ge=0, description="Its length.")
    num_passages: int = Field(ge=1)
    bad_rows: dict[str, int] = Field(description="Rows that were left out, by reason.")
    files: tuple[ArtifactRef, ...] = Field(description="Every other file, its path relative to the folder.")
    has_unspaced: bool | None = Field(
        default=None, description="Whether a script without blanks between words is in it; None: was not looked for."
    )

    @property
    def num_bad_rows(self) -> int:
        return sum(self.bad_rows.values())


class SourceFacts(NamedTuple):
    """What is known of a source once it was read to its end."""

    name: str
    sha256: str
    size_bytes: int
    bad_rows: dict[str, int]
    has_unspaced: bool


class StoredCorpus(NamedTuple):
    """An opened corpus; its passages stay on disk until they are read."""

    folder: Path
    passages: StoredPassages
    manifest: CorpusManifest


_KIND: Final = FolderKind(
    "corpus", CorpusManifest, CorpusUnusableError, "import it: sdsearch corpus import FILE", "import the corpus again"
)


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
        batch, offset = self._place(number)
        return Passage(**{name: batch.column(name)[offset].as_py() for name in _SCHEMA.names})

    def contents(self, start: int, stop: int) -> Iterator[str]:
        """Yield title and text of the passages from `start` up to, not with, `stop`."""
        while start < stop:
            batch, offset = self._place(start)
            part = batch.slice(offset, stop - start)
            columns = (part.column(name).to_pylist() for name in _SCHEMA.names)
            for identity, title, text in zip(*columns, strict=True):
                yield Passage.model_construct(id=identity, title=title, text=text).contents
            start += part.num_rows

    def _place(self, number: int) -> tuple[pa.RecordBatch, int]:
        chunk = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._batches[chunk], number - int(self._starts[chunk])


@contextmanager
def importing_alone(workspace: Workspace) -> Iterator[None]:
    """Let one process at a time import corpora into a workspace; another waits for its end."""
    with locked(workspace.corpus_lock):
        remove_leftovers(workspace.corpora)
        yield


def save_corpus(
    corpora: Path, batches: Iterable[Sequence[Passage]], facts: Callable[[], SourceFacts]
) -> tuple[Path, CorpusManifest]:
    """Write a corpus durably below `corpora`, named by its source's hash; one of that name is replaced.

    `facts` is asked when all batches are written. The caller is `importing_alone`. Raises ValueError for no
    passages, WriteFailedError when the system refuses.
    """
    with build_folder(corpora / "import") as building:
        num_passages = write_passages(building.path / PASSAGES, batches)
        if not num_passages:
            raise ValueError("a corpus needs one passage or more")
        source = facts()
        building.folder = corpora / source.sha256[:16]
        manifest = CorpusManifest(
            source=source.name,
            source_sha256=source.sha256,
            source_bytes=source.size_bytes,
            num_passages=num_passages,
            bad_rows=source.bad_rows,
            files=building.references(),
            has_unspaced=source.has_unspaced,
        )
        building.write_manifest(manifest)
    return building.folder, manifest


def write_passages(path: Path, batches: Iterable[Sequence[Passage]]) -> int:
    """Write passages as an Arrow file, a record batch for each batch, and return how many there were."""
    num_passages = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        for batch in batches:
            columns = [pa.array([getattr(passage, name) for passage in batch], pa.string()) for name in _SCHEMA.names]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=_SCHEMA))
            num_passages += len(batch)
    return num_passages


def open_corpus(folder: Path) -> StoredCorpus:
    """Open an imported corpus, its passages memory-mapped; CorpusUnusableError when it is missing or damaged."""
    manifest = _KIND.read_manifest(folder)
    for reference in manifest.files:
        _KIND.check_file(folder, reference)
    try:
        return StoredCorpus(folder, StoredPassages(folder / PASSAGES), manifest)
    except (OSError, pa.ArrowException) as error:
        raise _KIND.unreadable(folder, error) from error


def list_corpora(workspace: Workspace) -> list[tuple[Path, CorpusManifest]]:
    """Return folder and manifest of every corpus of a workspace, by its source's name; damaged ones are left out."""
    found = []
    for path in sorted(workspace.corpora.glob(f"*/{MANIFEST}")):
        try:
            found.append((path.parent, _KIND.read_manifest(path.parent)))
        except CorpusUnusableError:
            continue
    return sorted(found, key=lambda pair: (pair[1].source, pair[0].name))


def remembered_hash(workspace: Workspace, source: Path) -> str | None:
    """Return the sha256 of a file that was read before and looks untouched (length and time of change), else None.

    Hashing 14 GB takes most of a minute: too long for every start.
    """
    known = _read_sources(workspace).get(str(source.resolve()))
    return str(known["sha256"]) if known and known.get("mark") == _mark(source) else None


def remember_hash(workspace: Workspace, source: Path, sha256: str) -> None:
    """Remember a file's hash; the caller is `importing_alone`."""
    known = _read_sources(workspace) | {str(source.resolve()): {"mark": _mark(source), "sha256": sha256}}
    write_json_atomic(_sources(workspace), known, workspace.root)


def _mark(source: Path) -> list[int]:
    status = source.stat()
    return [status.st_size, status.st_mtime_ns]


def _sources(workspace: Workspace) -> Path:
    return workspace.corpora / "sources.json"


def _read_sources(workspace: Workspace) -> dict[str, dict[str, object]]:
    """Return what is remembered; a file that cannot be read is nothing remembered."""
    try:
        known = json.loads(_sources(workspace).read_text(encoding="utf-8"))
        return known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        return {}
