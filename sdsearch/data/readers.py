"""Streaming readers of rows in jsonl and parquet files, and of a Search-R1 corpus.

A row that cannot be read stops the reader with the file, the line, what was got and what was expected.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import ClearError, UserError, library_errors, reason_of
from schemas.records.passage import Passage

_CHUNK_BYTES = 1 << 20
_MAX_LINE_BYTES = 16 * 1024 * 1024
_MAX_ID_CHARS = 200
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
Row = Mapping[str, Any]


class DataError(UserError):
    """A data file that cannot be used as it is; the message says where, what was got and what to do."""


class BadRowError(DataError):
    """A row that cannot be used, while others of its file may be; `reason` is what such rows are counted by."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_passages(path: Traversable) -> Iterator[Passage]:
    """Yield the passages of a corpus: jsonl rows `{"id", "contents": "\\"Title\\"\\ntext"}` (Search-R1).

    Raises DataError for a broken row, an id seen twice and a file without rows.
    """
    seen: set[str] = set()
    for where, row in read_rows(path):
        if isinstance(row, BadRowError):
            raise row
        passage = passage_of(row, where)
        check_new(passage.id, seen, where)
        yield passage
    if not seen:
        raise DataError(f"{path}: the corpus is empty; expected one passage a line")


def split_contents(contents: str) -> tuple[str, str]:
    """Return title and text of `"Title"\\ntext`; a text of one line has no title."""
    title, separator, text = contents.partition("\n")
    return (_unquote(title.strip()), text.strip()) if separator else ("", contents.strip())


def file_hash(path: Traversable) -> str:
    """Return the sha256 (hex) of a data file's bytes; raises DataError when there is no such file."""
    digest = hashlib.sha256()
    with open_data_file(path) as file, library_errors(str(path), "make it readable, or get it again"):
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def open_data_file(path: Traversable) -> IO[bytes]:
    """Open a file to read; DataError when there is none, or it may not be read."""
    try:
        if path.is_file():
            return path.open("rb")
        what = "a folder; name a file" if path.is_dir() else "no such file; check the path"
        raise DataError(f"{path}: {what} in the settings")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); make it readable") from error


def read_rows(path: Traversable) -> Iterator[tuple[str, Row | BadRowError]]:
    """Yield (place, row) of a parquet or jsonl (also .gz, .zst) file; a line that is no row comes as its error.

    Raises DataError for a file that is missing, cut off or damaged.
    """
    if path.name.endswith(".parquet"):
        yield from _parquet_rows(path)
    else:
        for where, line in _lines(path):
            yield where, line if isinstance(line, BadRowError) else json_object(line, where)


def _lines(path: Traversable) -> Iterator[tuple[str, bytes | BadRowError]]:
    """Yield (place, line) of each line that is not blank."""
    number = 0
    with open_data_file(path) as raw, unpacking_named(path, lambda: number):
        for number, line in enumerate(bounded_lines(unpacked(raw, path.name)), 1):
            where = f"{path}, line {number}"
            if line is None:
                yield where, too_long(where)
                continue
            if number == 1:
                refuse_utf16(line, path)
            if line.strip():
                yield where, line


def bounded_lines(stream: Any) -> Iterator[bytes | None]:
    """Yield each line of a binary stream, None for one of more than 16 MiB, which is never in memory as a whole."""
    while line := stream.readline(_MAX_LINE_BYTES):
        is_whole = line.endswith(b"\n") or len(line) < _MAX_LINE_BYTES
        while not is_whole and (rest := stream.readline(_MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield line if is_whole else None


def too_long(where: str) -> BadRowError:
    """Return the error of a line that is longer than any row is."""
    return BadRowError(f"{where}: more than {_MAX_LINE_BYTES} bytes; expected one row per line", "too long")


def refuse_utf16(first_line: bytes, path: Traversable) -> None:
    """Raise DataError where a file begins as UTF-16 (or UTF-32) text does."""
    if first_line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: UTF-16 text; save the file as UTF-8")


def unpacked(file: Any, name: str) -> Any:
    """Return a binary file to read lines from; a name that ends in .gz or .zst says how it is packed."""
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=io.BufferedReader(file, _CHUNK_BYTES))
    if name.endswith(".zst"):
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"), _CHUNK_BYTES)
    return io.BufferedReader(file, _CHUNK_BYTES)


@contextmanager
def unpacking_named(path: Traversable, num_lines: Callable[[], int]) -> Iterator[None]:
    """Raise DataError for a packed file that is cut off or damaged."""
    try:
        yield
    except (ClearError, MemoryError):
        raise
    except Exception as error:  # gzip, zlib and Arrow document no closed list of what they raise.
        raise DataError(
            f"{path}: cannot be unpacked after line {num_lines()} ({reason_of(error)}); it is cut off or damaged: get "
            "it again"
        ) from error


def _parquet_rows(path: Traversable) -> Iterator[tuple[str, Row]]:
    number = 0
    try:
        with open_data_file(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (ClearError, MemoryError):
        raise
    except Exception as error:  # Arrow documents no closed list of what it raises over odd files.
        raise DataError(
            f"{path}: not a parquet file that can be read after row {number} ({reason_of(error)}); get it again"
        ) from error


def json_object(line: bytes, where: str) -> Row | BadRowError:
    """Return the object that a line of jsonl holds, or what is wrong with the line.

    A byte-order mark of UTF-8 before the first line is passed over.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets within each other.
        return BadRowError(
            f"{where}: expected a JSON object, got {short(line)} ({reason_of(error)}); repair the line",
            "no JSON object",
        )
    if not isinstance(row, dict):
        return BadRowError(f"{where}: expected a JSON object, got {short(line)}; repair the line", "no JSON object")
    if _SURROGATE.search(line) and not _is_unicode(row):
        return BadRowError(
            f"{where}: half a surrogate pair (\\ud800 to \\udfff alone) is no character; repair the line", "no Unicode"
        )
    return row


def _is_unicode(row: Row) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def passage_of(row: Row, where: str) -> Passage:
    """Return the passage of a row `{"id", "contents"}`; BadRowError when it has none."""
    contents = text_of(row, "contents", where)
    title, text = split_contents(contents)
    if "\n" not in contents or not text:
        raise BadRowError(
            f"{where}: 'contents' is {short(contents)}; expected the title in double quotes, a line break, the text",
            "no title and text",
        )
    return Passage(id=id_of(row.get("id"), where), title=title, text=text)


def _unquote(title: str) -> str:
    quoted = len(title) >= 2 and title.startswith('"') and title.endswith('"')
    return title[1:-1] if quoted else title


def id_of(value: object, where: str) -> str:
    """Return a row's id as text; BadRowError for what is none."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise BadRowError(f"{where}: 'id' is {short(value)}; expected a text or a whole number", "no id")
    text = str(value)
    if len(text) > _MAX_ID_CHARS or not text.isprintable():
        raise BadRowError(
            f"{where}: 'id' is {short(value)}; expected at most {_MAX_ID_CHARS} characters, none of them a line break "
            "or another control character",
            "no id",
        )
    return text


def text_of(row: Row, column: str, where: str) -> str:
    """Return a column's text; BadRowError where it is missing or blank."""
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        got = f"is {short(value)}" if column in row else f"is missing (columns: {', '.join(map(str, row))})"
        raise BadRowError(f"{where}: '{column}' {got}; expected a text that is not empty", f"no {column}")
    return value


def check_new(identity: str, seen: set[str], where: str) -> None:
    """Add an id to those seen; BadRowError for one that is there already."""
    if identity in seen:
        raise BadRowError(f"{where}: the id '{identity}' was seen before in this file; ids must be unique", "id twice")
    seen.add(identity)


def short(value: object) -> str:
    """Return a value as an error shows it, cut to 80 characters."""
    try:
        text = repr(value)
    except RecursionError:  # Brackets within brackets, just as deep as JSON is still read.
        text = f"a {type(value).__name__} of too many levels"
    return text if len(text) <= 80 else f"{text[:77]}..."
