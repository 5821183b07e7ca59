"""What an index is built from: corpus, encoder and settings, and the folder that belongs to the three."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flows.retrieval.corpora import find_corpus, holds_unspaced
from schemas.base import hash_json
from schemas.paths import folder_or_name
from schemas.settings.retrieval import (
    DenseRetrievalSettings,
    FlatIndexSettings,
    HFEncoderSettings,
    LexicalEncoderSettings,
)
from sdsearch.retrieval.kinds import SEARCH_SETTINGS
from sdsearch.retrieval.lexical import LexicalEncoder, LexicalSettings, recipe_hash
from storage.retrieval.corpora import StoredCorpus
from storage.retrieval.embeddings import PASSAGES_A_SHARD, Embeddings, EmbeddingsIdentity, find_embeddings
from storage.retrieval.encoders import EncoderState
from storage.retrieval.indexes import (
    IndexIdentity,
)
from storage.workspace import Workspace

if TYPE_CHECKING:
    from sdsearch.retrieval.hf import HFEncoder

_DIRECT_PASSAGES: Final = PASSAGES_A_SHARD


class IndexSource:
    """A corpus, an encoder and a sort of index as the settings name them."""

    def __init__(self, settings: DenseRetrievalSettings, workspace: Workspace) -> None:
        self.settings = settings
        self.workspace = workspace

    @cached_property
    def corpus(self) -> StoredCorpus:
        return find_corpus(self.settings.corpus, self.workspace)

    @property
    def corpus_hash(self) -> str:
        return self.corpus.manifest.source_sha256

    @cached_property
    def encoder_hash(self) -> str:
        """The recipe of a lexical encoder (it is fitted from the corpus), the weights of a neural one."""
        encoder = self.settings.encoder
        if isinstance(encoder, LexicalEncoderSettings):
            return recipe_hash(_lexical(encoder), unspaced=holds_unspaced(self.corpus))
        return self.neural_encoder.fingerprint()

    @property
    def is_exact(self) -> bool:
        """True when every vector is searched as the encoder gave it: nothing but corpus and encoder decides."""
        return isinstance(self.settings.index, FlatIndexSettings) and self.settings.vector_dtype == "float32"

    @cached_property
    def fingerprint(self) -> str:
        """Identifies what a search returns."""
        return self._hash(set())

    @property
    def folder(self) -> Path:
        """Where the index is; how it is searched does not count."""
        return self.workspace.indexes / self._hash(SEARCH_SETTINGS)[:16]

    @property
    def index_hash(self) -> str:
        """What an index is built with, beside corpus and encoder; empty for a flat one."""
        return "" if self.is_exact else hash_json(self._index_settings(SEARCH_SETTINGS))

    @property
    def identity(self) -> IndexIdentity:
        return IndexIdentity(self.corpus_hash, self.encoder_hash, self.index_hash)

    @property
    def embeddings_identity(self) -> EmbeddingsIdentity:
        return EmbeddingsIdentity(self.corpus_hash, self.encoder_hash, self.settings.vector_dtype)

    def embeddings(self) -> Embeddings | None:
        """Return the corpus's shards when all are there."""
        found = find_embeddings(self.workspace, self.embeddings_identity)
        return found if found is not None and not found.missing() else None

    @property
    def needs_shards(self) -> bool:
        """False for a small corpus with an exact index, into which it is encoded straight away."""
        return not self.is_exact or len(self.corpus.passages) > _DIRECT_PASSAGES

    def open_encoder(self, state: EncoderState) -> Any:
        """Return the encoder, a fitted one from its state."""
        if isinstance(self.settings.encoder, LexicalEncoderSettings):
            return LexicalEncoder.from_state(state.description, state.arrays)
        return self.neural_encoder

    def fit_encoder(self) -> tuple[Any, EncoderState]:
        """Return the encoder and its state, fitted on the corpus where its kind is."""
        settings = self.settings.encoder
        if isinstance(settings, HFEncoderSettings):
            return self.neural_encoder, EncoderState(settings.model_dump(), {})
        passages = self.corpus.passages
        encoder = LexicalEncoder.fit_stream(lambda: passages.contents(0, len(passages)), _lexical(settings))
        return encoder, EncoderState(*encoder.state())

    @cached_property
    def neural_encoder(self) -> HFEncoder:
        settings = self.settings.encoder
        assert isinstance(settings, HFEncoderSettings), "a lexical encoder is fitted, not loaded"
        return load_encoder(settings)

    def _hash(self, left_out: set[str]) -> str:
        of_both = [self.corpus_hash, self.encoder_hash]
        return hash_json(of_both if self.is_exact else [*of_both, self._index_settings(left_out)])

    def _index_settings(self, left_out: set[str]) -> dict[str, Any]:
        return {**self.settings.index.model_dump(exclude=left_out), "vector_dtype": self.settings.vector_dtype}


def _lexical(settings: LexicalEncoderSettings) -> LexicalSettings:
    options = settings.model_dump(exclude={"kind"})
    return LexicalSettings(**{**options, "num_dimensions": settings.num_dimensions or None})


def load_encoder(settings: HFEncoderSettings) -> HFEncoder:
    """Return the encoder of a model folder or hub name; UserError where it cannot encode."""
    from sdsearch.retrieval.hf import HFEncoder, HFSettings  # torch, which a lexical index does without

    options = HFSettings(**settings.model_dump(exclude={"kind", "path", "device", "dtype", "trust_remote_code"}))
    return HFEncoder.from_pretrained(
        folder_or_name(settings.path),
        options,
        device=settings.device,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
    )
