"""How a file of questions is read: the port that a plugin fills, and the shipped reader."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from schemas.base import Section
from schemas.errors import UserError, library_errors
from schemas.settings.data import DataSettings, SetName
from sdsearch.data.readers import BadRowError, Row, open_data_file, read_rows, short
from sdsearch.plugins import open_plugin

Located = tuple[str, Row | BadRowError]
ReadFile = Callable[[Path, str, str], Iterable[Row | Located]]


class Reader(Section):
    """Reads the files of questions. A plugin derives from this class; its fields are `data.reader_options`.

    A plain function of the same arguments serves too.
    """

    @abstractmethod
    def __call__(self, path: Path, dataset: str, split: str) -> Iterable[Row]:
        """Yield the rows of a split, each with FlashRAG's columns: id, question, golden_answers (a list of texts).

        A row may have `metadata`, of which `category` or `type` is kept. What cannot be used is best raised as
        ValueError.
        """


def standard(path: Path, dataset: str, split: str) -> Iterator[Located]:
    """jsonl (also .gz, .zst) or parquet with FlashRAG's or Search-R1's columns, told apart by the file's name."""
    return read_rows(path)


def open_reader(settings: DataSettings) -> ReadFile:
    """Return the reader that the settings name; PluginError where it cannot be used."""
    reader: ReadFile = open_plugin("reader", settings.reader, settings.reader_options)
    return reader


def read_with(reader: ReadFile, path: Path, name: SetName) -> Iterator[Located]:
    """Yield (place, row) of a data set's split; UserError, which names file and row, for whatever the reader raises."""
    if reader is standard:
        yield from read_rows(path)
        return
    open_data_file(path).close()  # A file that is not there is told like any other.
    number = 0
    with library_errors(f"data.reader, {path}", "correct the file or the reader"):
        for row in reader(path, name.dataset, name.split):
            number += 1
            where = f"{path}, row {number}"
            if not isinstance(row, Mapping):
                raise UserError(f"{where}: the reader gave {short(row)}; expected a mapping of columns to values")
            yield where, row
