"""`sdsearch index evaluate`: what each kind of index finds of exact search, on the data's own questions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from flows.console.errors import UserError
from flows.console.terminal import make_table, print_line
from flows.data.questions import Questions
from flows.retrieval.dense import build_dense_folder, open_or_build, searched_index
from flows.retrieval.embedding import embed_all
from flows.retrieval.source import IndexSource
from schemas.paths import local_path
from schemas.settings.retrieval import (
    DenseRetrievalSettings,
    FlatIndexSettings,
    HnswIndexSettings,
    HybridRetrievalSettings,
    IndexSettings,
    IvfPqIndexSettings,
    IvfSqIndexSettings,
)
from schemas.settings.root import Settings
from sdsearch.credit.scoring import contains_answer
from sdsearch.retrieval.kinds import VectorIndex, compares_shards
from sdsearch.retrieval.recall import RANKS, Exact, evaluate_index, search_exactly
from sdsearch.retrieval.vectors import encode_texts
from storage.disk.files import write_json_atomic
from storage.retrieval.embeddings import Embeddings
from storage.workspace import Workspace

KINDS: Final[dict[str, IndexSettings]] = {
    "flat": FlatIndexSettings(),
    "hnsw": HnswIndexSettings(),
    "ivf_sq": IvfSqIndexSettings(),
    "ivf_pq": IvfPqIndexSettings(),
}


class Row(NamedTuple):
    """One index in the table."""

    name: str
    recall: dict[int, float]
    hits: dict[int, float] | None  # None where the queries have no golden answers.
    batch_queries_per_s: float
    single_queries_per_s: float
    memory_mb: float
    disk_mb: float
    build_s: float | None


def evaluate_indexes(
    settings: Settings, workspace: Path, kinds: str, queries: str, out: Path | None, console: Console
) -> None:
    """Build what is missing, search, print a table, and write it as JSON to `out`."""
    chosen = _chosen(kinds, settings)
    source = _source(settings, Workspace.open(workspace))
    embeddings = source.embeddings() or embed_all(source)
    queries_QD, golden = _encode(source, embeddings, _queries(queries, settings))
    exact = search_exactly(embeddings, queries_QD)
    rows = [_evaluate(index, source, embeddings, queries_QD, golden, exact) for index in chosen]
    print_line(
        console,
        f"{embeddings.num_vectors:,} passages, {embeddings.num_dimensions} dimensions, {len(queries_QD)} queries, "
        f"{faiss.omp_get_max_threads()} threads; exact search from the shards: {exact.queries_per_s:,.1f} queries/s",
    )
    hits = [f"hit@{rank}" for rank in RANKS if golden is not None]
    headings = ["index", *(f"recall@{rank}" for rank in RANKS), *hits, "batch q/s", "single q/s", "memory MB"]
    headings.append("disk MB")
    console.print(make_table([*headings, "build s"], [_cells(row) for row in rows]))
    if out is not None:
        path = local_path(out).resolve()
        write_json_atomic(path, [row._asdict() for row in rows], path.parent)


def _chosen(kinds: str, settings: Settings) -> list[IndexSettings]:
    """Return the settings of each kind: the run's own where it is of that kind, defaults for the others."""
    names = [name.strip() for name in kinds.split(",")]
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise UserError(f"--kinds names '{unknown[0]}'; expected some of {', '.join(KINDS)}")
    own = getattr(settings.retrieval, "index", FlatIndexSettings())
    return [own if own.kind == name else KINDS[name] for name in names]


def _source(settings: Settings, workspace: Workspace) -> IndexSource:
    retrieval = settings.retrieval
    dense = retrieval.dense if isinstance(retrieval, HybridRetrievalSettings) else retrieval
    if not isinstance(dense, DenseRetrievalSettings):
        raise UserError(f"retrieval.kind '{retrieval.kind}' has no vectors; evaluate indexes of kind dense or hybrid")
    return IndexSource(dense, workspace)


class _Query(NamedTuple):
    """A text to search for; of a question, its golden answers."""

    text: str
    golden_answers: tuple[str, ...] = ()


def _queries(queries: str, settings: Settings) -> list[_Query]:
    """Return a file's lines, or so many of the training questions."""
    if not queries.isdecimal():
        try:
            lines = local_path(queries).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--queries '{queries}' is no number and cannot be read as a text file ({error})"
            ) from error
        found = [_Query(line) for line in lines if line.strip()]
    else:
        questions = Questions(settings.data).training
        drawn = random.Random(0).sample(questions, min(int(queries), len(questions)))
        found = [_Query(question.question, question.golden_answers) for question in drawn]
    if not found:
        raise UserError(
            f"--queries '{queries}' gives no query; expected a number from 1, or a file of one query a line"
        )
    return found


def _encode(
    source: IndexSource, embeddings: Embeddings, queries: Sequence[_Query]
) -> tuple[NDArray[np.float32], list[tuple[str, ...]] | None]:
    """Return the queries' vectors and golden answers, None for queries of a file.

    Those without a known word find nothing anywhere and are left out.
    """
    encoder, texts = source.open_encoder(embeddings.encoder), [query.text for query in queries]
    vectors_QD = encode_texts(encoder, texts, "query", embeddings.num_dimensions)
    is_known_Q = np.linalg.norm(vectors_QD, axis=1) > 0
    if not is_known_Q.any():
        raise UserError("none of the queries has a word that the corpus has; give others with --queries")
    known = [query for query, is_known in zip(queries, is_known_Q, strict=True) if is_known]
    golden = [query.golden_answers for query in known] if known[0].golden_answers else None
    return vectors_QD[is_known_Q], golden


def _evaluate(
    index: IndexSettings,
    source: IndexSource,
    embeddings: Embeddings,
    queries_QD: NDArray[np.float32],
    golden: Sequence[tuple[str, ...]] | None,
    exact: Exact,
) -> Row:
    own = IndexSource(source.settings.model_copy(update={"index": index}), source.workspace)
    build_s = None if own.folder.exists() else build_dense_folder(own).duration_s
    searched = searched_index(own, open_or_build(own))
    figures = evaluate_index(searched, embeddings, queries_QD, exact)
    memory_mb = (own.folder / "vectors.faiss").stat().st_size / 1e6
    shards_mb = sum(path.stat().st_size for path in embeddings.folder.glob("*.npy")) / 1e6
    return Row(
        name=describe(index),
        recall=dict(zip(RANKS, figures.recall, strict=True)),
        hits=None if golden is None else _hits(searched, source, queries_QD, golden),
        batch_queries_per_s=figures.batch_queries_per_s,
        single_queries_per_s=figures.single_queries_per_s,
        memory_mb=memory_mb,
        disk_mb=memory_mb + (shards_mb if compares_shards(index) else 0.0),
        build_s=build_s,
    )


def _hits(
    index: VectorIndex, source: IndexSource, queries_QD: NDArray[np.float32], golden: Sequence[tuple[str, ...]]
) -> dict[int, float]:
    """Return for each k of RANKS the share of questions with a golden answer in one of the best k passages."""
    _, rows_QK = index.search(queries_QD, max(RANKS))
    passages = source.corpus.passages
    holds_QK = np.array(
        [
            [row >= 0 and contains_answer(passages[int(row)], answers) for row in rows_K]
            for rows_K, answers in zip(rows_QK, golden, strict=True)
        ]
    )
    return {rank: float(holds_QK[:, :rank].any(axis=1).mean()) for rank in RANKS}


def describe(index: IndexSettings) -> str:
    """Return kind and settings in a few words."""
    told: dict[str, Any] = index.model_dump(exclude={"kind", "num_training_vectors", "ef_construction"})
    return " ".join([index.kind, *(f"{name}={value}" for name, value in told.items())])


def _cells(row: Row) -> list[object]:
    speeds = [f"{row.batch_queries_per_s:,.0f}", f"{row.single_queries_per_s:,.0f}"]
    sizes = [f"{row.memory_mb:,.0f}", f"{row.disk_mb:,.0f}"]
    recalls = [f"{value:.3f}" for value in row.recall.values()]
    hits = [f"{value:.3f}" for value in (row.hits or {}).values()]
    return [row.name, *recalls, *hits, *speeds, *sizes, "-" if row.build_s is None else f"{row.build_s:,.1f}"]
