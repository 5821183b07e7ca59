"""The retriever of a run: an index that is built once for a corpus and an encoder, then memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, assert_never

from flows.retrieval.bm25 import build_bm25_folder, open_bm25
from flows.retrieval.dense import build_dense_folder, open_dense
from flows.retrieval.report import IndexReport
from flows.retrieval.source import IndexSource
from schemas.base import hash_json
from schemas.records.passage import Passage
from schemas.settings.retrieval import (
    BM25RetrievalSettings,
    DenseRetrievalSettings,
    HttpRetrievalSettings,
    HybridRetrievalSettings,
    LocalRetrievalSettings,
    PluginRetrievalSettings,
    RetrievalSettings,
)
from sdsearch.plugins import load_plugin, open_plugin
from sdsearch.retrieval.http import HttpLimits, HttpRetriever
from sdsearch.retrieval.hybrid import HybridRetriever
from sdsearch.retrieval.ports import Retriever
from storage.workspace import Workspace


def open_retriever(settings: RetrievalSettings, workspace: Workspace) -> tuple[Retriever, str]:
    """Return the retriever that the settings name, and a fingerprint of all that decides what it finds.

    An index is built first where there is none that fits. Raises RetrieverDownError when a server does not answer.
    """
    plugin = load_plugin("retriever", settings.kind)
    if isinstance(settings, PluginRetrievalSettings) and plugin.options_model is not None:
        retriever = open_plugin("retriever", settings.kind, settings.options)
        return retriever, hash_json([plugin.path, settings.options, retriever.contents_hash()])
    opened: tuple[Retriever, str] = plugin.target(settings, workspace)
    return opened


def open_http(settings: HttpRetrievalSettings, workspace: Workspace) -> tuple[HttpRetriever, str]:
    """A server of Search-R1's protocol."""
    limits = HttpLimits(**settings.model_dump(include=set(HttpLimits.__dataclass_fields__)))
    retriever = HttpRetriever(settings.urls, limits)
    return retriever, retriever.fingerprint()


class LocalRetriever(Retriever, Protocol):
    """A retriever in this process."""

    @property
    def passages(self) -> Sequence[Passage]:
        """What is searched."""
        ...


def open_local(settings: LocalRetrievalSettings, workspace: Workspace) -> tuple[LocalRetriever, str]:
    """As `open_retriever`, for what is searched in this process."""
    match settings:
        case DenseRetrievalSettings():
            return open_dense(settings, workspace)
        case BM25RetrievalSettings():
            return open_bm25(settings, workspace)
        case HybridRetrievalSettings():
            return open_hybrid(settings, workspace)
        case _:
            assert_never(settings)


def open_hybrid(settings: HybridRetrievalSettings, workspace: Workspace) -> tuple[HybridRetriever, str]:
    """Vectors and words in this process, fused by reciprocal rank."""
    dense, dense_fingerprint = open_dense(settings.dense, workspace)
    bm25, bm25_fingerprint = open_bm25(settings.bm25, workspace)
    retriever = HybridRetriever([dense, bm25], bm25.passages, settings.rrf_k, settings.depth)
    return retriever, hash_json([dense_fingerprint, bm25_fingerprint, settings.rrf_k, settings.depth])


def build_indexes(settings: LocalRetrievalSettings, workspace: Workspace) -> list[IndexReport]:
    """Build the indexes that a retriever needs; those that are there are replaced."""
    match settings:
        case DenseRetrievalSettings():
            return [build_dense_folder(IndexSource(settings, workspace))]
        case BM25RetrievalSettings():
            return [build_bm25_folder(settings, workspace)]
        case HybridRetrievalSettings():
            return [*build_indexes(settings.dense, workspace), *build_indexes(settings.bm25, workspace)]
        case _:
            assert_never(settings)
