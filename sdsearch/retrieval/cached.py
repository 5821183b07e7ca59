"""A retriever that need not be asked twice, and what it did."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.records.passage import SearchHit
from sdsearch.retrieval.ports import Retriever, search_all

Hits = tuple[SearchHit, ...]


class HitStore(Protocol):
    """Where found hits are kept; it may forget any of them."""

    def get(self, queries: Sequence[str], top_k: int) -> dict[str, Hits]:
        """Return the hits of the queries that it knows."""
        ...

    def put(self, found: Mapping[str, Hits], top_k: int) -> None:
        """Keep the hits of each query."""
        ...


@dataclass
class SearchCounts:
    """What a retriever did since the counts were begun."""

    num_queries: int = 0
    num_cached: int = 0
    seconds: float = 0.0


class CachedRetriever:
    """Asks a retriever for what the store does not know; without a store, for everything. Counts either way."""

    def __init__(self, retriever: Retriever, store: HitStore | None = None) -> None:
        self._retriever = retriever
        self._store = store
        self.counts = SearchCounts()

    def search(self, queries: Sequence[str], top_k: int) -> list[Hits]:
        """Return each query's hits as the retriever gives them; what it fails on is not stored.

        Queries are asked in other company than without the store, which may turn the order of hits whose scores are
        equal to the last digit.
        """
        started = time.perf_counter()
        num_known = 0
        if self._store is None:
            found = search_all(self._retriever, queries, top_k)
        else:
            known = self._store.get(list(dict.fromkeys(queries)), top_k)
            missing = [query for query in dict.fromkeys(queries) if query not in known]
            asked = dict(zip(missing, search_all(self._retriever, missing, top_k), strict=True))
            if asked:
                self._store.put(asked, top_k)
            num_known = len(queries) - len(missing)
            found = [known[query] if query in known else asked[query] for query in queries]
        self.counts.num_queries += len(queries)
        self.counts.num_cached += num_known
        self.counts.seconds += time.perf_counter() - started
        return found
