"""Where passages come from: an index in this process, or a server."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, Tag

from schemas.base import Fraction, Positive, Section, Url
from schemas.plugins import PLUGIN, Names, Options

_LONGEST_WAIT_S: Final = 1_000_000  # Eleven days; the system's timers end somewhere beyond.
Saturation = Annotated[float, Field(ge=0, le=1000)]  # Far beyond use; what is larger leaves float32.


class LexicalEncoderSettings(Section):
    """BM25's TF-IDF weights as vectors; the embedded default."""

    kind: Literal["lexical"] = Field(default="lexical", description="This encoder.")
    num_dimensions: int = Field(
        default=2048, ge=0, le=65_536, description="Width the words are folded to; 0 keeps one dimension a word."
    )
    k1: Saturation = Field(default=0.9, description="Saturation of repeated words (BM25).")
    b: Fraction = Field(default=0.4, description="How much long passages are discounted (BM25).")
    seed: int = Field(default=0, ge=0, description="Seed of the folding.")


class HFEncoderSettings(Section):
    """A transformers sentence encoder of the E5 kind."""

    kind: Literal["hf"] = Field(default="hf", description="This encoder.")
    path: str = Field(default="intfloat/e5-base-v2", description="Folder or hub name (paper).")
    query_prefix: str = Field(default="query: ", description="Put before every query (E5).")
    passage_prefix: str = Field(default="passage: ", description="Put before every passage (E5).")
    max_length: Positive = Field(default=256, description="Tokens a text is cut to.")
    batch_size: Positive = Field(default=64, description="Texts a forward.")
    device: str = Field(default="cpu", description="Torch device.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="Type of the weights.")
    trust_remote_code: bool = Field(
        default=False, description="Run the Python code that comes with the encoder's folder; read that code first."
    )


EncoderSettings = Annotated[LexicalEncoderSettings | HFEncoderSettings, Field(discriminator="kind")]


class FlatIndexSettings(Section):
    """Every vector as it is: exact search."""

    kind: Literal["flat"] = Field(default="flat", description="This index.")


class HnswIndexSettings(Section):
    """A graph of neighbours over the vectors as they are: fast, and larger than the vectors."""

    kind: Literal["hnsw"] = Field(default="hnsw", description="This index.")
    num_neighbours: Annotated[int, Field(ge=4, le=1024)] = Field(default=32, description="Links per vector, M.")
    ef_construction: Positive = Field(default=200, description="Candidates while the graph is built.")
    ef_search: Positive = Field(default=128, description="Candidates of a search.")


class ListsSettings(Section):
    """What indexes of inverted lists share."""

    num_lists: int = Field(default=0, ge=0, description="Lists; 0: by the number of vectors, 4 sqrt(N).")
    num_probes: int = Field(default=0, ge=0, description="Lists that a search looks through; 0: one of 32.")
    num_training_vectors: int = Field(
        default=0, ge=0, description="Vectors drawn to train on; 0: 64 a list, and at least 65536, as far as there are."
    )


class IvfSqIndexSettings(ListsSettings):
    """Inverted lists of rounded vectors: little memory, and little loss where candidates are compared again."""

    kind: Literal["ivf_sq"] = Field(default="ivf_sq", description="This index.")
    bits: Literal[8, 6, 4] = Field(default=4, description="Bits a dimension.")
    refine: Literal["none", "disk"] = Field(
        default="disk", description="Whether candidates are compared again by their own vectors, the shards on disk."
    )
    candidates: Positive = Field(default=10, description="With refine: candidates for each passage asked for.")


class IvfPqIndexSettings(ListsSettings):
    """Inverted lists of product-quantised vectors, the best candidates compared again by finer ones."""

    kind: Literal["ivf_pq"] = Field(default="ivf_pq", description="This index.")
    num_bytes: int = Field(
        default=0, ge=0, description="Bytes per vector, a divisor of its width; 0: one for 8 dimensions, or fewer."
    )
    rotate: bool = Field(default=False, description="Rotate the vectors first, so that bytes lose less (OPQ).")
    refine: Literal["none", "sq4", "sq6", "sq8", "disk"] = Field(
        default="disk", description="What candidates are compared by: rounded vectors in memory, or the shards on disk."
    )
    candidates: Positive = Field(default=100, description="With refine: candidates for each passage asked for.")


IndexSettings = Annotated[
    FlatIndexSettings | HnswIndexSettings | IvfSqIndexSettings | IvfPqIndexSettings, Field(discriminator="kind")
]


class _Searched(Section):
    """What every kind of retriever has."""

    num_passages: Positive = Field(default=3, description="Passages per query (paper).")
    cache: bool = Field(default=False, description="Keep what searches find in the workspace, for this index.")
    cache_max_entries: int = Field(
        default=200_000, ge=1, le=10**12, description="Queries kept, about 2 kB each; the oldest go."
    )


class DenseRetrievalSettings(_Searched):
    """Vectors in this process: a corpus, its encoder, an index over the vectors."""

    kind: Literal["dense"] = Field(default="dense", description="This retriever; also when no kind is given.")
    corpus: str = Field(
        default="world",
        description="'world' is the embedded corpus; else a Search-R1 jsonl (also .gz, .zst), or an imported corpus.",
    )
    encoder: EncoderSettings = Field(default=LexicalEncoderSettings(), description="What turns texts into vectors.")
    vector_dtype: Literal["float32", "float16"] = Field(
        default="float32", description="Type of the vectors on disk; float16 takes half the space (ours)."
    )
    index: IndexSettings = Field(default=FlatIndexSettings(), description="How vectors are searched.")


class BM25RetrievalSettings(_Searched):
    """Words in this process: an inverted index, scored by BM25 (Lucene's variant, bm25s)."""

    kind: Literal["bm25"] = Field(default="bm25", description="This retriever.")
    corpus: str = Field(default="world", description="As for kind = 'dense'.")
    k1: Saturation = Field(default=0.9, description="Saturation of repeated words (Anserini's default).")
    b: Fraction = Field(default=0.4, description="How much long passages are discounted (Anserini's default).")


class HybridRetrievalSettings(_Searched):
    """Vectors and words in this process, fused by reciprocal rank."""

    kind: Literal["hybrid"] = Field(default="hybrid", description="This retriever.")
    corpus: str = Field(default="world", description="As for kind = 'dense'.")
    encoder: EncoderSettings = Field(default=LexicalEncoderSettings(), description="As for kind = 'dense'.")
    vector_dtype: Literal["float32", "float16"] = Field(default="float32", description="As for kind = 'dense'.")
    index: IndexSettings = Field(default=FlatIndexSettings(), description="As for kind = 'dense'.")
    k1: Saturation = Field(default=0.9, description="As for kind = 'bm25'.")
    b: Fraction = Field(default=0.4, description="As for kind = 'bm25'.")
    rrf_k: Positive = Field(default=60, description="A hit of rank r counts 1 / (rrf_k + r) (Cormack et al., 2009).")
    depth: Positive = Field(default=50, description="Hits of each side that are fused.")

    @property
    def dense(self) -> DenseRetrievalSettings:
        """The side of the vectors."""
        return DenseRetrievalSettings(
            corpus=self.corpus, encoder=self.encoder, vector_dtype=self.vector_dtype, index=self.index
        )

    @property
    def bm25(self) -> BM25RetrievalSettings:
        """The side of the words."""
        return BM25RetrievalSettings(corpus=self.corpus, k1=self.k1, b=self.b)


class HttpRetrievalSettings(_Searched):
    """A server of Search-R1's `/retrieve` protocol: ours (`sdsearch retriever serve`) or any other."""

    kind: Literal["http"] = Field(default="http", description="This retriever.")
    urls: tuple[Url, ...] = Field(
        min_length=1, description="Base URLs, such as http://127.0.0.1:8000; one that fails is passed over."
    )
    timeout_s: float = Field(default=30.0, gt=0, le=_LONGEST_WAIT_S, description="Longest wait for one answer.")
    max_attempts: Positive = Field(default=5, description="Requests before a search fails, all URLs together.")
    backoff_s: float = Field(
        default=0.5,
        ge=0,
        le=_LONGEST_WAIT_S,
        description="Pause after every URL has failed, doubled each time, with jitter.",
    )
    queries_per_request: Positive = Field(default=128, description="Queries that are sent in one request.")
    max_query_characters: Positive = Field(
        default=8192, description="Longer queries are cut to this; our server takes no longer ones."
    )


class PluginRetrievalSettings(_Searched):
    """A retriever of your own; `kind` is the name of the plugin, such as my_module:MyRetriever."""

    kind: Annotated[str, Names("retriever")] = Field(description="The plugin.")
    options: Options = Field(default={}, description="The plugin's settings.")


LocalRetrievalSettings = DenseRetrievalSettings | BM25RetrievalSettings | HybridRetrievalSettings


REACH: Final = frozenset(
    f"retrieval.{name}"
    for name in (
        "urls",
        "timeout_s",
        "max_attempts",
        "backoff_s",
        "queries_per_request",
        "cache",
        "cache_max_entries",
    )
)
"""Settings that say how an index is reached and not what is found: a run may go on with others."""


_KINDS: Final = ("dense", "bm25", "hybrid", "http")


def _kind(value: Any) -> str:
    """Return the kind that is asked for; a table without one is dense, and so is what is no table: it is refused."""
    kind = value.get("kind", "dense") if isinstance(value, dict) else getattr(value, "kind", "dense")
    return kind if kind in _KINDS else PLUGIN


RetrievalSettings = Annotated[
    Annotated[DenseRetrievalSettings, Tag("dense")]
    | Annotated[BM25RetrievalSettings, Tag("bm25")]
    | Annotated[HybridRetrievalSettings, Tag("hybrid")]
    | Annotated[HttpRetrievalSettings, Tag("http")]
    | Annotated[PluginRetrievalSettings, Tag(PLUGIN)],
    Discriminator(_kind),
    Field(description="Where passages come from."),
]
