"""What searches found, kept on disk for later searches of the same index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from schemas.records.passage import Passage, SearchHit
from storage.disk.text_cache import TextCache

Hits = tuple[SearchHit, ...]


class HitCache:
    """Hits of one index by query and their number; entries of other indexes in the same file are never seen."""

    def __init__(self, path: Path, index: str, max_entries: int) -> None:
        """Use the file at `path`, made when first needed; it holds up to `max_entries`, the oldest go first."""
        self._index = index
        self._texts = TextCache(path, max_entries)

    def get(self, queries: Sequence[str], top_k: int) -> dict[str, Hits]:
        """Return the hits of those queries that were put with this `top_k`."""
        by_key = {self._key(query, top_k): query for query in queries}
        return {by_key[key]: _decoded(text) for key, text in self._texts.get(by_key).items()}

    def put(self, found: Mapping[str, Hits], top_k: int) -> None:
        """Keep the hits of each query in one short transaction."""
        self._texts.put({self._key(query, top_k): _encoded(hits) for query, hits in found.items()})

    def close(self) -> None:
        """Let go of the file."""
        self._texts.close()

    def _key(self, query: str, top_k: int) -> str:
        return hashlib.sha256(json.dumps([self._index, top_k, query]).encode()).hexdigest()


def _encoded(hits: Hits) -> str:
    return json.dumps([[hit.passage.id, hit.passage.title, hit.passage.text, hit.score] for hit in hits])


def _decoded(text: str) -> Hits:
    return tuple(
        SearchHit(passage=Passage(id=identity, title=title, text=body), score=score)
        for identity, title, body, score in json.loads(text)
    )
