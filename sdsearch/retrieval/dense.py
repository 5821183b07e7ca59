"""Exact vector search: one batched encode and one batched FAISS search a call.

Shape suffixes: `N` queries, `K` hits, `D` vector width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import faiss
import numpy as np
from numpy.typing import NDArray

from schemas.errors import UserError
from schemas.records.passage import Passage, SearchHit
from sdsearch.retrieval.kinds import VectorIndex
from sdsearch.retrieval.ports import Encoder, RetrieverDownError
from sdsearch.retrieval.vectors import encode_texts

_BATCH = 8192


class DenseRetriever:
    """Queries to passages by the inner product of their vectors."""

    def __init__(self, encoder: Encoder, index: VectorIndex, passages: Sequence[Passage]) -> None:
        """Search `index`, whose i-th vector is that of `passages[i]`; raises ValueError when their numbers differ."""
        if index.ntotal != len(passages):
            raise ValueError(
                f"the index holds {index.ntotal} vectors, the corpus {len(passages)} passages; build the index again"
            )
        self.encoder = encoder
        self.index = index
        self.passages = passages

    def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
        """Return for each query up to `top_k` hits, best first; a hit must score above zero.

        A query that shares nothing with any passage so finds nothing. Where scores are equal to the last digit, the
        order may depend on how many queries are searched together. Raises RetrieverDownError when encoding or
        the index fails.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; ask for one passage or more")
        if not queries:
            return []
        try:
            vectors_ND = encode_texts(self.encoder, queries, "query", self.index.d)
            scores_NK, rows_NK = self.index.search(vectors_ND, min(top_k, self.index.ntotal))
            self._check(scores_NK, rows_NK)
        except (UserError, RuntimeError, OSError) as error:
            raise RetrieverDownError(f"searching {len(queries)} queries failed: {error}") from error
        pairs = zip(scores_NK.tolist(), rows_NK.tolist(), strict=True)
        return [self._hits(scores, rows) for scores, rows in pairs]

    def _check(self, scores_NK: NDArray[np.float32], rows_NK: NDArray[np.int64]) -> None:
        """Refuse what only vectors that are not finite give: no score, or too few hits of an exhaustive search."""
        is_exhaustive = isinstance(self.index, faiss.IndexFlat)
        if not np.isfinite(scores_NK[rows_NK >= 0]).all() or (is_exhaustive and (rows_NK < 0).any()):
            raise RuntimeError("the index holds vectors that are not finite: build it again (sdsearch index build)")

    def _hits(self, scores: list[float], rows: list[int]) -> tuple[SearchHit, ...]:
        # FAISS fills up with row -1 when it has fewer vectors than were asked for.
        found = [(score, row) for score, row in zip(scores, rows, strict=True) if row >= 0 and score > 0]
        return tuple(SearchHit(passage=self.passages[row], score=score) for score, row in found)


def encode_blocks(
    encoder: Encoder, texts: Iterable[str], num_dimensions: int | None = None, size: int = _BATCH
) -> Iterator[NDArray[np.float32]]:
    """Yield (N, D) vectors of passages' texts, in their order, `size` at a time; errors are those of `encode_texts`."""
    remaining = iter(texts)
    while block := list(islice(remaining, size)):
        yield encode_texts(encoder, block, "passage", num_dimensions)


def build_index(passages: Sequence[Passage], encoder: Encoder) -> faiss.Index:
    """Return an exact inner-product index over the passages' contents, in their order.

    Raises UserError for an empty corpus.
    """
    if not passages:
        raise UserError("the corpus is empty: an index needs one passage or more; check the corpus file")
    blocks = encode_blocks(encoder, (passage.contents for passage in passages))
    index = None
    for vectors_ND in blocks:
        index = index or faiss.IndexFlatIP(vectors_ND.shape[1])
        index.add(vectors_ND)
    assert index is not None, "some passages make at least one block"
    return index


def build_dense_retriever(passages: Sequence[Passage], encoder: Encoder) -> DenseRetriever:
    """Return a retriever over an index that is built in memory."""
    return DenseRetriever(encoder, build_index(passages, encoder), passages)
