"""Retrievers that search by words: a BM25 index of a corpus, built once, then memory-mapped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from flows.retrieval.corpora import find_corpus, holds_unspaced
from flows.retrieval.report import IndexReport
from schemas.base import hash_json
from schemas.settings.retrieval import BM25RetrievalSettings
from sdsearch.retrieval.bm25 import BM25Retriever, bm25_recipe_hash, build_bm25
from storage.retrieval.bm25 import load_bm25, save_bm25
from storage.retrieval.corpora import StoredCorpus
from storage.retrieval.indexes import building_alone, load_or_build
from storage.workspace import Workspace


class BM25Source:
    """A corpus and the settings that decide its BM25 index."""

    def __init__(self, settings: BM25RetrievalSettings, workspace: Workspace) -> None:
        self.corpus: StoredCorpus = find_corpus(settings.corpus, workspace)
        recipe = bm25_recipe_hash(settings.k1, settings.b, unspaced=holds_unspaced(self.corpus))
        self.fingerprint = hash_json([self.corpus.manifest.source_sha256, recipe])
        self._hashes = (self.corpus.manifest.source_sha256, recipe)
        self._settings = settings
        self._workspace = workspace

    @property
    def folder(self) -> Path:
        return self._workspace.indexes / self.fingerprint[:16]

    def load(self) -> Any:
        """Return the index; IndexUnusableError when there is none that fits."""
        return load_bm25(self.folder, *self._hashes)

    def build(self) -> IndexReport:
        """Build and write the index; the caller is `building_alone`."""
        started = time.perf_counter()
        passages = self.corpus.passages
        index = build_bm25(lambda: passages.contents(0, len(passages)), self._settings.k1, self._settings.b)
        save_bm25(self.folder, index, *self._hashes)
        seconds = time.perf_counter() - started
        return IndexReport(self.folder, len(passages), f"{len(index.vocab_dict)} words", seconds)


def open_bm25(settings: BM25RetrievalSettings, workspace: Workspace) -> tuple[BM25Retriever, str]:
    """Return the retriever and its fingerprint, building the index first where there is none that fits."""
    source = BM25Source(settings, workspace)
    index = load_or_build(workspace, source.folder, source.load, source.build)
    return BM25Retriever(index, source.corpus.passages), source.fingerprint


def build_bm25_folder(settings: BM25RetrievalSettings, workspace: Workspace) -> IndexReport:
    """Build the index and write it."""
    source = BM25Source(settings, workspace)
    with building_alone(workspace):
        return source.build()
