"""The doctor's checks of retrieval: servers, or corpus, encoder and index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from flows.console.errors import PEOPLES_ERRORS, UserError
from flows.doctor.checks import Check, answers
from flows.doctor.hub import model_files
from flows.retrieval.corpora import is_named, look_at
from schemas.commands import command, quoted
from schemas.paths import folder_or_name, local_path
from schemas.settings.data import WORLD
from schemas.settings.retrieval import (
    BM25RetrievalSettings,
    DenseRetrievalSettings,
    FlatIndexSettings,
    HFEncoderSettings,
    HttpRetrievalSettings,
    HybridRetrievalSettings,
    PluginRetrievalSettings,
    RetrievalSettings,
)
from sdsearch.world import corpus_file
from storage.retrieval.corpora import CorpusManifest, list_corpora, open_corpus, remembered_hash
from storage.retrieval.indexes import IndexManifest
from storage.workspace import Workspace

_MANIFEST = "manifest.json"
_BYTES_A_PASSAGE = 650
_BUILT_AT_START = 200_000
"""Passages of which words are indexed while a run starts; an index of more, or by a model, is built on its own."""


def retrieval_checks(building: str, retrieval: RetrievalSettings, workspace: Workspace) -> Iterator[Check]:
    """Yield what searching needs; `building` is the command that builds the settings' indexes."""
    if isinstance(retrieval, HttpRetrievalSettings):
        for url in retrieval.urls:
            remedy = "start it, for example with: sdsearch retriever serve; or correct retrieval.urls"
            yield answers(f"retriever {url}", url, remedy)
        return
    if isinstance(retrieval, PluginRetrievalSettings):
        return  # It is opened and asked at the start, as doctor does too.
    parts: list[DenseRetrievalSettings | BM25RetrievalSettings] = (
        [retrieval.dense, retrieval.bm25] if isinstance(retrieval, HybridRetrievalSettings) else [retrieval]
    )
    encoder = getattr(parts[0], "encoder", None)
    if isinstance(encoder, HFEncoderSettings):
        yield _encoder(encoder)
    manifest, corpus = _corpus(retrieval.corpus, workspace)
    yield corpus
    for part in parts:
        name = f"index, {part.kind}"
        if corpus.ok:
            yield _index(name, building, part, manifest, workspace)
        else:
            remedy = f"the corpus first, then: {building}"
            yield Check(name, "not built", f"an index of {retrieval.corpus}", False, remedy)


def _encoder(settings: HFEncoderSettings) -> Check:
    """Return whether the encoder encodes: an index of a large corpus is built long after this was asked."""
    if model_files(folder_or_name(settings.path)).missing:
        remedy = f"hf download {quoted(settings.path)}, or point retrieval.encoder.path at a folder"
        return Check("encoder", "not there", settings.path, False, remedy)
    from flows.retrieval.source import load_encoder

    try:
        width = load_encoder(settings).num_dimensions
    except PEOPLES_ERRORS as error:
        return Check("encoder", "refused", settings.path, False, str(error))
    return Check("encoder", f"gives vectors of {width} dimensions", settings.path, True)


def _corpus(name: str, workspace: Workspace) -> tuple[CorpusManifest | None, Check]:
    imported = [manifest for _, manifest in list_corpora(workspace)]
    try:
        path, what = look_at(name)
    except UserError as error:
        return None, Check("corpus", "not there", name[:80], False, str(error))
    if what == "folder" and name != WORLD:
        return _folder(path, name)
    if name == WORLD:
        size = len(corpus_file().read_bytes())
        known = (item for item in imported if (item.source, item.source_bytes) == (corpus_file().name, size))
        return next(known, None), Check("corpus", f"embedded, {size / 1e6:.1f} MB", name, True)
    sha256 = remembered_hash(workspace, path) if what == "file" else None
    for manifest in imported:
        if manifest.source_sha256 == sha256 or is_named(manifest, name):
            return manifest, Check("corpus", f"{manifest.num_passages} passages, imported", name, True)
    remedy = (
        "get it (Search-R1's wiki-18.jsonl.gz: hf download PeterJinGo/wiki-18-corpus --repo-type dataset), then: "
        f"{command('corpus', 'import', 'FILE', workspace=workspace.root)}"
    )
    if what == "file":
        size_gb = path.stat().st_size / 1e9
        return None, Check("corpus", f"there, {size_gb:.2f} GB, not imported yet", name, True)
    return None, Check("corpus", "not there", name, False, remedy)


def _folder(folder: Path, name: str) -> tuple[CorpusManifest | None, Check]:
    try:
        manifest = open_corpus(folder).manifest
    except PEOPLES_ERRORS as error:
        return None, Check("corpus", "no corpus", name, False, str(error))
    return manifest, Check("corpus", f"{manifest.num_passages} passages, imported", name, True)


def _index(
    name: str,
    building: str,
    settings: DenseRetrievalSettings | BM25RetrievalSettings,
    manifest: CorpusManifest | None,
    workspace: Workspace,
) -> Check:
    encoder = settings.encoder if isinstance(settings, DenseRetrievalSettings) else None
    path = encoder.path if isinstance(encoder, HFEncoderSettings) else None
    needed = f"an index of {settings.corpus}{f' by {path}' if path else ''}"
    found = _built(settings, path, workspace) if manifest is not None else None
    if found is not None:
        return Check(name, found, needed, True)
    # Other kinds than flat are trained on the corpus's shards, which takes a while for any corpus.
    is_quick = path is None and getattr(settings, "index", FlatIndexSettings()).kind == "flat"
    if is_quick and _num_passages(settings.corpus, manifest) <= _BUILT_AT_START:
        return Check(name, "built when a run starts, in seconds", needed, True)
    problem = _impossible(settings, manifest)
    return Check(name, "cannot be built" if problem else "not built", needed, False, problem or building)


def _impossible(settings: DenseRetrievalSettings | BM25RetrievalSettings, manifest: CorpusManifest | None) -> str:
    """Return why FAISS could not make the index; empty where it could, and where too little is known of the vectors."""
    if isinstance(settings, BM25RetrievalSettings) or (manifest is None and settings.corpus != WORLD):
        return ""
    encoder = settings.encoder
    if isinstance(encoder, HFEncoderSettings):
        width = (model_files(folder_or_name(encoder.path)).config or {}).get("hidden_size")
    else:
        width = encoder.num_dimensions
    if not isinstance(width, int) or not width:
        return ""
    from sdsearch.retrieval.kinds import factory_name

    try:
        factory_name(settings.index, int(_num_passages(settings.corpus, manifest)), width)
    except UserError as error:
        return str(error)
    return ""


def _built(
    settings: DenseRetrievalSettings | BM25RetrievalSettings, path: str | None, workspace: Workspace
) -> str | None:
    """Return what is told of the index that these settings search, None when it is not there.

    A model's index is found by the model's name, since hashing its weights would mean to load them; opening it
    compares the hashes.
    """
    if isinstance(settings, BM25RetrievalSettings):
        from flows.retrieval.bm25 import BM25Source

        return "built" if (BM25Source(settings, workspace).folder / _MANIFEST).is_file() else None
    from flows.retrieval.source import IndexSource

    source = IndexSource(settings, workspace)
    if path is None:
        return "built" if (source.folder / _MANIFEST).is_file() else None
    for manifest, encoder in _indexes(workspace):
        wanted = (source.corpus_hash, source.index_hash, path)
        if (manifest.corpus_hash, manifest.index_hash, encoder) == wanted:
            size = sum(file.size_bytes for file in manifest.files) / 1e9
            return f"{manifest.num_passages} vectors of {manifest.num_dimensions} dimensions, {size:.1f} GB"
    return None


def _num_passages(corpus: str, manifest: CorpusManifest | None) -> float:
    if manifest is not None:
        return manifest.num_passages
    if corpus == WORLD:
        return len(corpus_file().read_bytes().splitlines())
    path = local_path(corpus)
    return path.stat().st_size / _BYTES_A_PASSAGE if path.is_file() else float("inf")


def _indexes(workspace: Workspace) -> Iterator[tuple[IndexManifest, str | None]]:
    """Yield each index of a workspace with its encoder's folder or hub name, None for words as vectors."""
    for path in sorted(workspace.indexes.glob(f"*/{_MANIFEST}")):
        try:
            encoder = json.loads((path.parent / "encoder.json").read_bytes())
            yield IndexManifest.model_validate_json(path.read_bytes()), encoder.get("path")
        except (OSError, ValueError, AttributeError):
            continue  # A damaged index is no index; building says what is wrong with it.
