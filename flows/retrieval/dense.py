"""Retrievers that search by vectors: a corpus is encoded once, into an index or first into shards."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import faiss

from flows.retrieval.report import IndexReport
from flows.retrieval.source import IndexSource
from schemas.settings.retrieval import (
    DenseRetrievalSettings,
    FlatIndexSettings,
)
from sdsearch.retrieval.dense import DenseRetriever, encode_blocks
from sdsearch.retrieval.kinds import VectorIndex, build_vector_index, compares_shards, set_search
from storage.retrieval.embeddings import Embeddings
from storage.retrieval.encoders import EncoderState
from storage.retrieval.indexes import (
    IndexUnusableError,
    StoredIndex,
    VectorBlocks,
    building_alone,
    load_index,
    load_or_build,
    save_index,
)
from storage.workspace import Workspace

if TYPE_CHECKING:
    pass


def open_dense(settings: DenseRetrievalSettings, workspace: Workspace) -> tuple[DenseRetriever, str]:
    """Return the retriever and its fingerprint; the index is built first where there is none that fits."""
    source = IndexSource(settings, workspace)
    stored = open_or_build(source)
    index = searched_index(source, stored)
    return DenseRetriever(source.open_encoder(stored.encoder), index, source.corpus.passages), source.fingerprint


def searched_index(source: IndexSource, stored: StoredIndex) -> VectorIndex:
    """Return an opened index, set to search as the settings say."""
    shards = source.embeddings() if compares_shards(source.settings.index) else None
    return set_search(stored.vectors, source.settings.index, shards)


def open_or_build(source: IndexSource) -> StoredIndex:
    """Return the index, built when there is none that fits."""
    return load_or_build(
        source.workspace,
        source.folder,
        load=lambda: _load(source),
        build=lambda: _build(source),
        prepare=lambda: _embed_first(source),
    )


def build_dense_folder(source: IndexSource) -> IndexReport:
    """Encode the corpus and write the index."""
    _embed_first(source)
    with building_alone(source.workspace):
        return _build(source)


def _embed_first(source: IndexSource) -> None:
    """Make the shards that an index needs, before it keeps others from being built."""
    if source.needs_shards and source.embeddings() is None:
        from flows.retrieval.embedding import embed_all

        embed_all(source)


def _load(source: IndexSource) -> StoredIndex:
    stored = load_index(source.folder, source.identity)
    if compares_shards(source.settings.index) and source.embeddings() is None:
        raise IndexUnusableError(
            f"{source.folder}: the index compares candidates by the corpus's shards (retrieval.index.refine = disk), "
            "which are not there; make them again: sdsearch corpus embed CONFIG"
        )
    return stored


def _build(source: IndexSource) -> IndexReport:
    started = time.perf_counter()
    embeddings = source.embeddings()
    vectors: VectorBlocks | faiss.Index
    if embeddings is None:
        vectors, state = _encode(source)
    else:
        embeddings.verify()
        vectors, state = _index_of(source, embeddings), embeddings.encoder
    manifest = save_index(source.folder, vectors, state, source.identity)
    seconds = time.perf_counter() - started
    size = f"{manifest.num_dimensions} dimensions"
    return IndexReport(source.folder, manifest.num_passages, size, seconds)


def _encode(source: IndexSource) -> tuple[VectorBlocks, EncoderState]:
    passages = source.corpus.passages
    encoder, state = source.fit_encoder()
    blocks = encode_blocks(encoder, passages.contents(0, len(passages)), encoder.num_dimensions)
    return VectorBlocks(len(passages), encoder.num_dimensions, blocks), state


def _index_of(source: IndexSource, embeddings: Embeddings) -> VectorBlocks | faiss.Index:
    if isinstance(source.settings.index, FlatIndexSettings):
        return VectorBlocks(embeddings.num_vectors, embeddings.num_dimensions, embeddings.blocks())
    return build_vector_index(source.settings.index, embeddings)
