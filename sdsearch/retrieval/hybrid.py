"""Several retrievers over one corpus, fused by reciprocal rank (Cormack, Clarke and Büttcher, SIGIR 2009)."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.records.passage import Passage, SearchHit
from sdsearch.retrieval.ports import Retriever, search_all


class HybridRetriever:
    """A passage scores the sum, over the retrievers that found it, of 1 / (rrf_k + its rank there, from 1)."""

    def __init__(self, sides: Sequence[Retriever], passages: Sequence[Passage], rrf_k: int, depth: int) -> None:
        """Fuse the first `depth` hits of each side; equal scores stand in the order of the sides, then of ranks."""
        self.passages = passages
        self._sides = sides
        self._rrf_k = rrf_k
        self._depth = depth

    def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
        """Return for each query up to `top_k` hits, best first; () means that no side found anything.

        Raises RetrieverDownError when a side fails.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; ask for one passage or more")
        found = [search_all(side, queries, max(self._depth, top_k)) for side in self._sides]
        return [self._fuse(lists)[:top_k] for lists in zip(*found, strict=True)]

    def _fuse(self, lists: Sequence[tuple[SearchHit, ...]]) -> tuple[SearchHit, ...]:
        scores: dict[str, float] = {}
        passages: dict[str, Passage] = {}
        for hits in lists:
            for rank, hit in enumerate(hits, 1):
                passages.setdefault(hit.passage.id, hit.passage)
                scores[hit.passage.id] = scores.get(hit.passage.id, 0.0) + 1 / (self._rrf_k + rank)
        best = sorted(scores, key=lambda identity: -scores[identity])  # stable: equal scores keep their order
        return tuple(SearchHit(passage=passages[identity], score=scores[identity]) for identity in best)
