"""A corpus file read once, in bounded memory: passages, what is wrong with the other rows, bytes read, hash."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from importlib.resources.abc import Traversable
from typing import IO, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.records.passage import Passage
from sdsearch.data.readers import (
    BadRowError,
    bounded_lines,
    json_object,
    open_data_file,
    passage_of,
    refuse_utf16,
    too_long,
    unpacked,
    unpacking_named,
)

BATCH_ROWS: Final = 16_384


class CorpusBatch(NamedTuple):
    """Some rows of a corpus, in the file's order."""

    passages: list[Passage]
    bad_rows: list[BadRowError]


class CorpusReader:
    """The rows of a Search-R1 corpus: jsonl `{"id", "contents": "\\"Title\\"\\ntext"}`, also as .gz or .zst.

    Memory: one batch of rows, and 8 bytes an id (twice that while ids are merged: 0.34 GB for 21 million). Ids are
    compared by a 64-bit hash: among 21 million, two that differ are taken for one with a probability of 1e-5.
    """

    def __init__(self, path: Traversable) -> None:
        """Open the file; DataError when there is none."""
        self.path = path
        file = open_data_file(path)
        self.size_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        self._source = _HashedFile(file)
        self._seen = _SeenIds()
        self._is_read = False

    @property
    def bytes_read(self) -> int:
        """Bytes of the file, as it lies on the disk, that were read so far."""
        return self._source.num_bytes

    def sha256(self) -> str:
        """Return the sha256 (hex) of the file's bytes; all batches were read before."""
        assert self._is_read, "the hash is known at the end of the file"
        return self._source.digest.hexdigest()

    def batches(self) -> Iterator[CorpusBatch]:
        """Yield the rows; DataError for a compressed file that is truncated or damaged."""
        with self._source:
            stream = unpacked(self._source, self.path.name)  # Closes its source when nothing refers to it any more.
            numbered = self._numbered(bounded_lines(stream))
            while rows := [row for _, row in zip(range(BATCH_ROWS), numbered, strict=False)]:
                yield self._without_repeats(rows)
            while self._source.read(1 << 20):  # What follows the end of a compressed stream.
                pass
        self._is_read = True

    def _numbered(self, lines: Iterator[bytes | None]) -> Iterator[tuple[str, Passage | BadRowError]]:
        number = 0
        with unpacking_named(self.path, lambda: number):
            for number, line in enumerate(lines, 1):
                where = f"{self.path}, line {number}"
                if line is None:
                    yield where, too_long(where)
                    continue
                if number == 1:
                    refuse_utf16(line, self.path)
                if line.strip():
                    yield where, _read(line, where)

    def _without_repeats(self, rows: Sequence[tuple[str, Passage | BadRowError]]) -> CorpusBatch:
        passages = [(where, row) for where, row in rows if isinstance(row, Passage)]
        bad_rows = [row for _, row in rows if isinstance(row, BadRowError)]
        is_new = self._seen.add([passage.id for _, passage in passages])
        for (where, passage), new in zip(passages, is_new, strict=True):
            if not new:
                message = f"{where}: the id '{passage.id}' was seen before in this file; ids must be unique"
                bad_rows.append(BadRowError(message, "id twice"))
        return CorpusBatch([passage for (_, passage), new in zip(passages, is_new, strict=True) if new], bad_rows)


class _SeenIds:
    """Hashes of ids in sorted runs, each at least twice as long as the next: few runs to look through, few merges."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def add(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        """Return for each id whether it is new, and remember it."""
        digests = b"".join(hashlib.blake2b(identity.encode(), digest_size=8).digest() for identity in ids)
        hashes = np.frombuffer(digests, dtype=np.uint64)
        unique, first = np.unique(hashes, return_index=True)
        is_new = np.zeros(len(hashes), dtype=np.bool_)
        is_new[first] = True
        for run in self._runs:
            positions = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            is_new &= run[positions] != hashes
        if is_new.any():
            self._runs.append(unique[is_new[first]])
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            merged = np.concatenate([self._runs.pop(), self._runs.pop()])
            merged.sort(kind="stable")
            self._runs.append(merged)
        return is_new


class _HashedFile(io.RawIOBase):
    """A file that counts and hashes what is read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        self.digest.update(content)
        self.num_bytes += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def _read(line: bytes, where: str) -> Passage | BadRowError:
    row = json_object(line, where)
    if isinstance(row, BadRowError):
        return row
    try:
        return passage_of(row, where)
    except BadRowError as error:
        return error
