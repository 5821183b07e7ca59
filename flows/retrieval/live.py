"""The retriever of a run while it is open: what it finds, through the cache where there is one, and what it did."""

from __future__ import annotations

from contextlib import ExitStack

from flows.retrieval.open import open_retriever
from schemas.base import hash_json
from schemas.records.reports import RetriedQuery, RetrievalReport
from schemas.settings.retrieval import RetrievalSettings
from sdsearch.plugins import load_plugin
from sdsearch.retrieval.cached import CachedRetriever, SearchCounts
from sdsearch.retrieval.http import HttpRetriever
from sdsearch.retrieval.ports import Retriever, search_all
from storage.retrieval.hit_cache import HitCache
from storage.workspace import Workspace

_TRIAL = "capital of Peru"


class LiveRetriever:
    """A retriever, the fingerprint of what it searches, and its counts from stage to stage."""

    def __init__(self, settings: RetrievalSettings, workspace: Workspace) -> None:
        """Open what the settings name; errors are those of `open_retriever`."""
        self._kind = settings.kind
        self._stack = ExitStack()
        self._inner, self.fingerprint = open_retriever(settings, workspace)
        if isinstance(self._inner, HttpRetriever):
            self._stack.callback(self._inner.close)
        store = None
        if settings.cache:
            # What a plugin finds follows from its code too.
            plugin = load_plugin("retriever", settings.kind)
            searched = self.fingerprint if plugin.is_shipped else hash_json([self.fingerprint, plugin.sources.hashes])
            store = HitCache(workspace.hit_cache, searched, settings.cache_max_entries)
            self._stack.callback(store.close)
        self._cached = CachedRetriever(self._inner, store)
        self._retries_told = self._num_retries
        self._of_others: list[RetrievalReport] = []

    @property
    def retriever(self) -> Retriever:
        """What rollouts search with."""
        return self._cached

    def try_search(self, num_passages: int) -> None:
        """Search once, uncounted and past the cache; RetrieverDownError where the answer is none."""
        search_all(self._inner, [_TRIAL], num_passages)
        self._retries_told = self._num_retries
        self._take_retried()

    def take_report(self) -> RetrievalReport:
        """Return what was done since the last report."""
        counts, self._cached.counts = self._cached.counts, SearchCounts()
        num_retries, self._retries_told = self._num_retries - self._retries_told, self._num_retries
        others, self._of_others = self._of_others, []
        num_queries = counts.num_queries + sum(other.num_queries for other in others)
        num_cached = counts.num_cached + sum(other.num_cached for other in others)
        return RetrievalReport(
            retriever=self._kind,
            index_hash=self.fingerprint,
            num_queries=num_queries,
            num_cached=num_cached,
            cache_hit_share=num_cached / num_queries if num_queries else 0.0,
            num_retries=num_retries + sum(other.num_retries for other in others),
            seconds=counts.seconds + sum(other.seconds for other in others),
            retried=(*self._take_retried(), *(retried for other in others for retried in other.retried)),
        )

    def add_report(self, report: RetrievalReport) -> None:
        """Count with the next report what another process did for it."""
        assert report.index_hash == self.fingerprint, "it searched the same"
        self._of_others.append(report)

    def close(self) -> None:
        """Let go of connections and the cache."""
        self._stack.close()

    @property
    def _num_retries(self) -> int:
        return self._inner.num_retries if isinstance(self._inner, HttpRetriever) else 0

    def _take_retried(self) -> tuple[RetriedQuery, ...]:
        retried = self._inner.take_retried() if isinstance(self._inner, HttpRetriever) else {}
        return tuple(RetriedQuery(query=query, num_retries=number) for query, number in retried.items())
