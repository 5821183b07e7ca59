"""What the commands of corpora print: bars while they work, tables at their end."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from flows.console.errors import UserError
from flows.console.terminal import format_seconds, make_table, plain, print_line
from flows.retrieval.corpora import Imported, ImportProgress, import_corpus, name_of_imported
from flows.retrieval.embedding import Embedded, EmbedProgress, embed
from flows.retrieval.source import IndexSource
from schemas.commands import quoted, set_option
from schemas.paths import local_path
from schemas.settings.retrieval import DenseRetrievalSettings, HybridRetrievalSettings, RetrievalSettings
from storage.retrieval.corpora import list_corpora
from storage.workspace import Workspace

_SHOWN_BAD_ROWS: Final = 5


def import_in_terminal(file: Path, workspace: Path, max_bad_rows: int, console: Console) -> None:
    """Import a corpus with a bar, the first broken rows as they come, and what was left out by reason."""
    opened = Workspace.open(workspace)
    columns: list[ProgressColumn] = [
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, transient=True) as progress:
        shower = _ImportBar(progress, console)
        imported = import_corpus(local_path(file), opened, max_bad_rows, shower.show)
    print_imported(imported, opened, console)


def embed_in_terminal(
    settings: RetrievalSettings,
    workspace: Path,
    num_shards: int | None,
    only: str | None,
    console: Console,
    num_workers: int = 1,
) -> None:
    """Encode a corpus in so many processes, with a bar, and print what was made and what is left."""
    dense = settings.dense if isinstance(settings, HybridRetrievalSettings) else settings
    if not isinstance(dense, DenseRetrievalSettings):
        raise UserError(f"retrieval.kind '{settings.kind}' has no vectors; embed a corpus for kind dense or hybrid")
    source = IndexSource(dense, Workspace.open(workspace))
    columns: list[ProgressColumn] = [TextColumn("shard {task.fields[shard]}"), BarColumn(), MofNCompleteColumn()]
    columns += [TextColumn("{task.fields[rate]}"), TimeRemainingColumn(elapsed_when_finished=True)]
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("embed", total=None, rate="", shard="-")

        def show(state: EmbedProgress) -> None:
            seconds = progress.tasks[task].elapsed or 0.0
            rate = f"{state.num_done / seconds:,.1f} passages/s" if seconds else ""
            progress.update(task, completed=state.num_done, total=state.num_wanted, rate=rate, shard=state.shard)

        if num_workers == 1:
            embedded = embed(source, num_shards, _shards(only), show)
        else:
            from flows.retrieval.embed_workers import embed_side_by_side

            embedded = embed_side_by_side(source, num_shards, _shards(only), num_workers, show)
    print_embedded(embedded, console)


def print_embedded(embedded: Embedded, console: Console) -> None:
    """Print what a process made, and what is left."""
    embeddings, missing = embedded.embeddings, embedded.embeddings.missing()
    manifest = embeddings.manifest
    rate = embedded.num_passages / max(embedded.duration_s, 1e-9)
    print_line(
        console,
        f"{embeddings.folder}: {len(embedded.made)} shards made, {manifest.num_shards - len(missing)} of "
        f"{manifest.num_shards} are there; {manifest.num_dimensions} x {manifest.dtype}, "
        f"{embedded.num_passages:,} passages in {format_seconds(embedded.duration_s)} ({rate:,.1f}/s)",
    )
    if missing:
        print_line(console, f"missing: {', '.join(map(str, missing[:20]))}{', …' if len(missing) > 20 else ''}")


def _shards(text: str | None) -> range | None:
    """Return the shards that FIRST:LAST, or one number, names."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not first.isdecimal() or not (last or first).isdecimal():
        raise UserError(f"--only '{text}' names no shards; expected FIRST:LAST, such as 0:15, or one number")
    return range(int(first), int(last or first) + 1)


class _ImportBar:
    """Shows how far an import is."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress, self._console = progress, console
        self._task = progress.add_task("import", total=None, rate="")
        self._num_shown = 0

    def show(self, state: ImportProgress) -> None:
        for row in state.bad_rows[: _SHOWN_BAD_ROWS - self._num_shown]:
            self._console.print(plain(f"left out: {row}"), soft_wrap=True)
            self._num_shown += 1
        seconds = self._progress.tasks[self._task].elapsed or 0.0
        rate = f"{state.num_rows / seconds:,.0f} rows/s" if seconds else ""
        self._progress.update(self._task, completed=state.bytes_read, total=state.size_bytes, rate=rate)


def print_imported(imported: Imported, workspace: Workspace, console: Console) -> None:
    """Print what an import made."""
    manifest = imported.manifest
    if manifest.bad_rows:
        console.print(make_table(["left out because of", "rows"], manifest.bad_rows.items()))
    rate = (manifest.num_passages + manifest.num_bad_rows) / max(imported.duration_s, 1e-9)
    print_line(
        console,
        f"{imported.folder}: {manifest.num_passages:,} passages, {manifest.num_bad_rows:,} rows left out, "
        f"{format_seconds(imported.duration_s)} ({rate:,.0f} rows/s)",
    )
    if manifest.has_unspaced:
        print_line(
            console,
            "some of it is in scripts without blanks between words (Chinese, Japanese, Thai, …): kind bm25 and the "
            "lexical encoder search it by pairs of characters",
        )
    name = name_of_imported(imported.folder, manifest, workspace)
    where = f"--workspace {quoted(str(workspace.root))}"
    print_line(console, f"use it with: {set_option('retrieval.corpus', name)} {where}")


def print_corpora(workspace: Path, console: Console) -> None:
    """Print a table of the imported corpora."""
    rows = [
        (folder.name, manifest.source, manifest.num_passages, manifest.num_bad_rows, manifest.source_bytes / 1e6)
        for folder, manifest in list_corpora(Workspace.open(workspace))
    ]
    console.print(make_table(["corpus", "source", "passages", "left out", "source MB"], rows))
