"""Corpora: importing a file, and finding the one that the settings name."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final, Literal, NamedTuple, assert_never

from flows.console.errors import UserError
from schemas.commands import command, path_argument
from schemas.errors import library_errors
from schemas.paths import local_path
from schemas.records.passage import Passage
from sdsearch.data.corpus import CorpusReader
from sdsearch.data.readers import BadRowError, DataError, file_hash
from sdsearch.unspaced import has_unspaced
from sdsearch.world import corpus_file
from storage.retrieval.corpora import (
    CorpusManifest,
    CorpusUnusableError,
    SourceFacts,
    StoredCorpus,
    importing_alone,
    list_corpora,
    open_corpus,
    remember_hash,
    remembered_hash,
    save_corpus,
)
from storage.workspace import Workspace

logger = logging.getLogger(__name__)
WORLD: Final = "world"
_SHORTEST_PREFIX: Final = 6


class ImportProgress(NamedTuple):
    """How far an import is."""

    bytes_read: int
    size_bytes: int
    num_rows: int
    bad_rows: list[BadRowError]


Report = Callable[[ImportProgress], None]


class Imported(NamedTuple):
    """What an import made."""

    folder: Path
    manifest: CorpusManifest
    duration_s: float


class _Import:
    """One reading of a corpus file: its passages for the store, its broken rows counted."""

    def __init__(self, path: Traversable, workspace: Workspace, max_bad_rows: int, report: Report) -> None:
        self._reader = CorpusReader(path)
        self._path = path
        self._workspace = workspace
        self._max_bad_rows = max_bad_rows
        self._report = report
        self._reasons: Counter[str] = Counter()
        self._num_rows = 0
        self._has_unspaced = False

    def batches(self) -> Iterator[list[Passage]]:
        """Yield the passages; DataError when more rows are broken than may be, or none is left."""
        num_passages = 0
        for batch in self._reader.batches():
            self._reasons.update(row.reason for row in batch.bad_rows)
            num_passages += len(batch.passages)
            self._has_unspaced = self._has_unspaced or any(has_unspaced(item.contents) for item in batch.passages)
            self._num_rows += len(batch.passages) + len(batch.bad_rows)
            self._report(
                ImportProgress(self._reader.bytes_read, self._reader.size_bytes, self._num_rows, batch.bad_rows)
            )
            self._check(batch.bad_rows)
            yield batch.passages
        if not num_passages:
            raise DataError(f"{self._path}: the corpus is empty; expected one passage a line")

    def facts(self) -> SourceFacts:
        return SourceFacts(
            self._path.name,
            self._reader.sha256(),
            self._reader.size_bytes,
            dict(sorted(self._reasons.items())),
            self._has_unspaced,
        )

    def _check(self, bad_rows: list[BadRowError]) -> None:
        if self._reasons.total() <= self._max_bad_rows or not bad_rows:
            return
        if not self._max_bad_rows:
            importing = command("corpus", "import", path_argument(str(self._path)), workspace=self._workspace.root)
            raise DataError(f"{bad_rows[0]}; or leave such rows out: {importing}")
        raise DataError(
            f"{self._path}: {self._reasons.total()} of the first {self._num_rows} rows are broken, at most "
            f"{self._max_bad_rows} may be (--max-bad-rows), the last because of {bad_rows[-1]}"
        )


def import_corpus(path: Traversable, workspace: Workspace, max_bad_rows: int, report: Report | None = None) -> Imported:
    """Import a corpus file; rows that are broken are left out, up to `max_bad_rows` of them.

    Raises DataError for more, for a file without passages, and for one that cannot be decompressed.
    """
    with importing_alone(workspace):
        return _import(path, workspace, max_bad_rows, report or (lambda progress: None))


def _import(path: Traversable, workspace: Workspace, max_bad_rows: int, report: Report) -> Imported:
    started = time.perf_counter()
    work = _Import(path, workspace, max_bad_rows, report)
    folder, manifest = save_corpus(workspace.corpora, work.batches(), work.facts)
    if isinstance(path, Path):
        remember_hash(workspace, path, manifest.source_sha256)
    return Imported(folder, manifest, time.perf_counter() - started)


def find_corpus(name: str, workspace: Workspace) -> StoredCorpus:
    """Return the corpus that `retrieval.corpus` names: 'world', a file (imported first), or an imported corpus.

    Raises UserError or CorpusUnusableError when there is none.
    """
    if name == WORLD:
        return _of_file(corpus_file(), workspace)
    path, what = look_at(name)
    match what:
        case "file":
            return _of_file(path, workspace)
        case "folder":
            return open_corpus(path)
        case "nothing":
            return open_corpus(_imported(name, workspace))
        case _:
            assert_never(what)


def look_at(name: str) -> tuple[Path, Literal["file", "folder", "nothing"]]:
    """Return the path that a corpus's name may be, and what is there; UserError where nobody may look."""
    path = local_path(name)
    with library_errors(f"retrieval.corpus {name[:80]!r}", "make the folder that it is in readable"):
        return path, "file" if path.is_file() else "folder" if path.is_dir() else "nothing"


def _of_file(path: Traversable, workspace: Workspace) -> StoredCorpus:
    """Return a file's corpus, imported when it is not there yet."""
    stored = _stored(path, workspace)
    if stored is None:
        with importing_alone(workspace):
            stored = _stored(path, workspace)  # Another process may have imported it in the meantime.
            stored = stored or open_corpus(_import(path, workspace, 0, lambda progress: None).folder)
    return stored


def _stored(path: Traversable, workspace: Workspace) -> StoredCorpus | None:
    """Return the corpus with the file's bytes, which are read only when the file looks changed."""
    known = remembered_hash(workspace, path) if isinstance(path, Path) else None
    if known is None:
        imported = {manifest.source_bytes for _, manifest in list_corpora(workspace)}
        known = file_hash(path) if not isinstance(path, Path) or path.stat().st_size in imported else None
    folder = workspace.corpora / known[:16] if known else None
    if folder is None or not folder.exists():
        return None
    try:
        return open_corpus(folder)
    except CorpusUnusableError as error:
        logger.warning("the corpus is imported again: %s", error)
        return None


def holds_unspaced(corpus: StoredCorpus) -> bool:
    """True when a script without blanks between words is in a corpus: its words are counted otherwise."""
    if corpus.manifest.has_unspaced is not None:
        return corpus.manifest.has_unspaced
    return any(has_unspaced(text) for text in corpus.passages.contents(0, len(corpus.passages)))


def name_of_imported(folder: Path, manifest: CorpusManifest, workspace: Workspace) -> str:
    """Return the shortest text by which retrieval.corpus names an imported corpus, and no other one, from here."""
    for name in (*_names(manifest), folder.name):
        is_free = name != WORLD and not local_path(name).exists()
        if is_free and [known for known, other in list_corpora(workspace) if is_named(other, name)] == [folder]:
            return name
    return str(folder)


def is_named(manifest: CorpusManifest, name: str) -> bool:
    """True when a name is that of an imported corpus: its file's, with or without endings, or the hash's beginning."""
    is_hash = len(name) >= _SHORTEST_PREFIX and manifest.source_sha256.startswith(name)
    return is_hash or name in _names(manifest)


def _names(manifest: CorpusManifest) -> list[str]:
    return [name for name in (manifest.source.partition(".")[0], manifest.source) if name]


def _imported(name: str, workspace: Workspace) -> Path:
    corpora = list_corpora(workspace)
    found = [folder for folder, manifest in corpora if is_named(manifest, name)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{manifest.source} ({folder.name})" for folder, manifest in corpora) or "none"
    problem = f"{len(found)} imported corpora have this name" if found else "no such file, folder or imported corpus"
    raise UserError(
        f"retrieval.corpus '{name}': {problem}; expected 'world', a Search-R1 jsonl file (also .gz, .zst), or one of "
        f"those in {workspace.root}: {known}"
    )
