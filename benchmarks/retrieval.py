"""Hit@3, size and speed of retrievers on the embedded world; prints a Markdown table.

`python benchmarks/retrieval.py [--queries 2000]`. A gold query names what a hop asks for in one of the wordings that
a good searcher would use ("capital of Andorra", "Andorra capital", "the country whose capital is Lima"); it hits when
one of the hop's gold passages is among the first three.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from sklearn.random_projection import GaussianRandomProjection

from schemas.records.passage import Passage
from sdsearch.retrieval.bm25 import BM25Retriever, build_bm25
from sdsearch.retrieval.dense import build_dense_retriever
from sdsearch.retrieval.hybrid import HybridRetriever
from sdsearch.retrieval.lexical import LexicalEncoder, LexicalSettings
from sdsearch.retrieval.ports import Encoder, Retriever, TextKind
from sdsearch.world import load_passages, load_questions
from sdsearch.world.markup import Hop, load_marked_world, unmark

TOP_K = 3


class GoldQuery(NamedTuple):
    """A good query, which hop of its question it serves, and the passages that answer it."""

    text: str
    hop: int
    gold: frozenset[str]


class CosineEncoder:
    """TF-IDF vectors at unit length, reduced by a scikit-learn transformer or not."""

    def __init__(self, texts: Sequence[str], reducer: Any = None, **options: Any) -> None:
        self._vectorizer = TfidfVectorizer(sublinear_tf=True, **options).fit(texts)
        self._reducer = reducer.fit(self._vectorizer.transform(texts)) if reducer else None

    def encode(self, texts: Sequence[str], kind: TextKind) -> NDArray[np.float32]:
        weights = self._vectorizer.transform(texts)
        reduced = weights.toarray() if self._reducer is None else self._reducer.transform(weights)
        return np.asarray(normalize(np.asarray(reduced)), dtype=np.float32)


def gold_queries() -> list[GoldQuery]:
    """Return every wording of every hop of the questions that are shipped, each once."""
    kept = {question.id for split in ("train", "dev", "test") for question in load_questions(split)}
    queries = {
        GoldQuery(text, number, hop.gold)
        for plan in load_marked_world().plans
        if plan.id in kept
        for number, hop in enumerate(plan.hops)
        for text in wordings(hop)
    }
    return sorted(queries, key=lambda query: (query.hop, query.text))


def wordings(hop: Hop) -> Iterator[str]:
    """Yield the wordings of a hop's gold query."""
    subject, relation = unmark(hop.subject), unmark(hop.relation)
    yield f"{subject} {relation}"
    yield unmark(hop.bridge) if hop.bridge else f"{relation} of {subject}"


def hit_share(retriever: Retriever, queries: Sequence[GoldQuery]) -> float:
    """Return the share of queries with a gold passage among the first TOP_K."""
    found = retriever.search([query.text for query in queries], TOP_K)
    pairs = zip(found, queries, strict=True)
    return float(np.mean([any(hit.passage.id in query.gold for hit in hits) for hits, query in pairs]))


class Built(NamedTuple):
    """A retriever, and the size of its index."""

    retriever: Retriever
    size_mb: float


def dense(fit: Callable[[list[str]], Encoder], passages: Sequence[Passage]) -> Built:
    """Return exact search with an encoder that is fitted on the passages' texts."""
    retriever = build_dense_retriever(passages, fit([passage.contents for passage in passages]))
    return Built(retriever, retriever.index.ntotal * retriever.index.d * 4 / 1e6)


def words(passages: Sequence[Passage]) -> Built:
    """Return search by words (`retrieval.kind = "bm25"`)."""
    index = build_bm25(lambda: (passage.contents for passage in passages), 0.9, 0.4)
    size = sum(index.scores[name].nbytes for name in ("data", "indices", "indptr"))
    return Built(BM25Retriever(index, passages), size / 1e6)


def hybrid(fit: Callable[[list[str]], Encoder], passages: Sequence[Passage]) -> Built:
    """Return vectors and words fused (`retrieval.kind = "hybrid"`)."""
    sides = dense(fit, passages), words(passages)
    retriever = HybridRetriever([side.retriever for side in sides], passages, rrf_k=60, depth=50)
    return Built(retriever, sum(side.size_mb for side in sides))


def candidates() -> dict[str, Callable[[Sequence[Passage]], Built]]:
    """Return how to build each retriever."""
    default, reduced = encoders()["BM25 vectors, 2048 (default)"], encoders()["TF-IDF cosine, words, LSA 512"]
    return {
        **{name: partial(dense, fit) for name, fit in encoders().items()},
        "bm25": words,
        "hybrid of bm25 and the default": partial(hybrid, default),
        "hybrid of bm25 and LSA 512": partial(hybrid, reduced),
    }


def encoders() -> dict[str, Callable[[list[str]], Encoder]]:
    """Return how to fit each encoder on the passages' texts."""

    def lexical(num_dimensions: int | None) -> Callable[[list[str]], Encoder]:
        return lambda texts: LexicalEncoder.fit(texts, LexicalSettings(num_dimensions=num_dimensions))

    def cosine(make_reducer: Callable[[], Any] | None = None, **options: Any) -> Callable[[list[str]], Encoder]:
        return lambda texts: CosineEncoder(texts, make_reducer() if make_reducer else None, **options)

    by_words: dict[str, Any] = {"token_pattern": r"(?u)[^\W_]+"}
    return {
        "TF-IDF cosine, words": cosine(**by_words),
        "TF-IDF cosine, words, random projection 512": cosine(
            lambda: GaussianRandomProjection(512, random_state=0), **by_words
        ),
        "TF-IDF cosine, words, LSA 512": cosine(lambda: TruncatedSVD(512, random_state=0), **by_words),
        "TF-IDF cosine, words, LSA 1024": cosine(lambda: TruncatedSVD(1024, random_state=0), **by_words),
        "TF-IDF cosine, letters 2-4, random projection 2048": cosine(
            lambda: GaussianRandomProjection(2048, random_state=0), analyzer="char_wb", ngram_range=(2, 4)
        ),
        "BM25 vectors, a dimension a word": lexical(None),
        "BM25 vectors, 4096": lexical(4096),
        "BM25 vectors, 2048 (default)": lexical(2048),
        "BM25 vectors, 1024": lexical(1024),
        "BM25 vectors, 512": lexical(512),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=2000, help="gold queries of each hop")
    num_queries = parser.parse_args().queries
    torch.set_num_threads(1)
    passages, drawn = load_passages(), random.Random(0)
    queries = gold_queries()
    hops = [[query for query in queries if query.hop == hop] for hop in (0, 1)]
    hops = [drawn.sample(of_hop, min(num_queries, len(of_hop))) for of_hop in hops]
    print(f"{len(passages)} passages, {len(hops[0])} + {len(hops[1])} gold queries\n")
    print("| retriever | hit@3 first hop | hit@3 second hop | build s | index MB | ms a query |")
    print("|---|---|---|---|---|---|")
    for name, build in candidates().items():
        started = time.perf_counter()
        retriever, size_mb = build(passages)
        built = time.perf_counter()
        first, second = (hit_share(retriever, of_hop) for of_hop in hops)
        query_ms = 1000 * (time.perf_counter() - built) / sum(map(len, hops))
        row = f"{first:.3f} | {second:.3f} | {built - started:.1f} | {size_mb:.0f} | {query_ms:.2f}"
        print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
