"""The sorts of vector index, made with FAISS and searched by inner product.

Shape suffixes: `N` vectors or queries, `C` candidates, `K` hits, `D` vector width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, assert_never

import faiss
import numpy as np
from numpy.typing import NDArray

from schemas.errors import UserError, library_errors
from schemas.settings.retrieval import (
    FlatIndexSettings,
    HnswIndexSettings,
    IndexSettings,
    IvfPqIndexSettings,
    IvfSqIndexSettings,
    ListsSettings,
)

_CODES_A_BYTE: Final = 256
_TRAINING_VECTORS_A_LIST: Final = 64
_FEWEST_TRAINING_VECTORS: Final = 65_536
_LISTS_A_PROBE: Final = 32
# FAISS's default of 50 gains nothing that was seen in recall and takes minutes more at 768 dimensions.
_ROTATION_ROUNDS: Final = 12
# What decides how an index is searched, not what it holds: a change needs no new one.
SEARCH_SETTINGS: Final = {"ef_search", "num_probes", "candidates"}


class VectorSource(Protocol):
    """Vectors that need not fit in memory."""

    @property
    def num_vectors(self) -> int: ...

    @property
    def num_dimensions(self) -> int: ...

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield (N, D) vectors, all of them in their order."""
        ...

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return (len(rows), D) vectors of the given rows."""
        ...


class VectorIndex(Protocol):
    """What is searched: FAISS's index, or one whose candidates are compared again."""

    ntotal: int
    d: int

    def search(self, queries_ND: NDArray[np.float32], num_hits: int) -> tuple[Any, Any]:
        """Return (N, K) scores and (N, K) rows, best first; row -1 where there are fewer."""
        ...


class Refined:
    """An index whose candidates are compared again by their own vectors, which are read when they are needed."""

    def __init__(self, base: faiss.Index, vectors: VectorSource, candidates: int) -> None:
        self.base, self.vectors, self.candidates = base, vectors, candidates
        self.ntotal, self.d = base.ntotal, base.d

    def search(self, queries_ND: NDArray[np.float32], num_hits: int) -> tuple[Any, Any]:
        """As `VectorIndex.search`."""
        _, rows_NC = self.base.search(queries_ND, min(num_hits * self.candidates, self.ntotal))
        found = [self._compare(query_D, rows_C, num_hits) for query_D, rows_C in zip(queries_ND, rows_NC, strict=True)]
        return np.stack([scores for scores, _ in found]), np.stack([rows for _, rows in found])

    def _compare(self, query_D: NDArray[np.float32], rows_C: NDArray[np.int64], num_hits: int) -> tuple[Any, Any]:
        rows_C = np.sort(rows_C[rows_C >= 0])
        scores_C = self.vectors.rows(rows_C) @ query_D
        best_K = np.argsort(-scores_C, kind="stable")[:num_hits]
        missing = (0, num_hits - len(best_K))
        scores_K = np.pad(scores_C[best_K], missing, constant_values=-np.inf)
        return scores_K, np.pad(rows_C[best_K], missing, constant_values=-1)


def compares_shards(settings: IndexSettings) -> bool:
    """True when candidates are compared again by the vectors in the shards, which must be there for a search."""
    return isinstance(settings, IvfSqIndexSettings | IvfPqIndexSettings) and settings.refine == "disk"


def num_lists(settings: ListsSettings, num_vectors: int) -> int:
    """Return the number of inverted lists: the power of two next to 4 sqrt(N) where none is set."""
    chosen = settings.num_lists or 2 ** round(math.log2(4 * math.sqrt(num_vectors)))
    return min(chosen, max(num_vectors // 4, 1))


def num_probes(settings: ListsSettings, lists: int) -> int:
    """Return how many lists a search looks through: one of 32, and at least 32, where no number is set."""
    return min(settings.num_probes or max(lists // _LISTS_A_PROBE, _LISTS_A_PROBE), lists)


def num_training_vectors(settings: ListsSettings, num_vectors: int) -> int:
    """Return how many vectors an index is trained on."""
    wanted = max(_TRAINING_VECTORS_A_LIST * num_lists(settings, num_vectors), _FEWEST_TRAINING_VECTORS)
    return min(settings.num_training_vectors or wanted, num_vectors)


def bytes_of_codes(settings: IvfPqIndexSettings, num_dimensions: int) -> int:
    """Return the bytes of a product-quantised vector: the most up to one for 8 dimensions where none is set."""
    if settings.num_bytes:
        return settings.num_bytes
    return max(number for number in range(1, max(num_dimensions // 8, 1) + 1) if num_dimensions % number == 0)


def factory_name(settings: IndexSettings, num_vectors: int, num_dimensions: int) -> str:
    """Return how FAISS names such an index; UserError where it cannot be made."""
    match settings:
        case FlatIndexSettings():
            return "Flat"
        case HnswIndexSettings():
            return f"HNSW{settings.num_neighbours}"
        case IvfSqIndexSettings():
            _check_training(settings, num_vectors)
            return f"IVF{num_lists(settings, num_vectors)},SQ{settings.bits}"
        case IvfPqIndexSettings():
            _check_product(settings, num_vectors, num_dimensions)
            _check_training(settings, num_vectors)
            num_bytes = bytes_of_codes(settings, num_dimensions)
            rotation = f"OPQ{num_bytes}," if settings.rotate else ""
            refine = f",Refine(SQ{settings.refine.removeprefix('sq')})" if settings.refine.startswith("sq") else ""
            return f"{rotation}IVF{num_lists(settings, num_vectors)},PQ{num_bytes}{refine}"
        case unknown:
            assert_never(unknown)


def build_vector_index(settings: IndexSettings, vectors: VectorSource, seed: int = 0) -> faiss.Index:
    """Return an index over all vectors, trained on a sample and filled block by block.

    Memory: the index and the sample. Raises UserError where such an index cannot be made of these vectors.
    """
    name = factory_name(settings, vectors.num_vectors, vectors.num_dimensions)
    with _of_faiss(settings):
        index = faiss.index_factory(vectors.num_dimensions, name, faiss.METRIC_INNER_PRODUCT)
        if isinstance(settings, HnswIndexSettings):
            own_class(index).hnsw.efConstruction = settings.ef_construction
    if isinstance(settings, ListsSettings):
        sample = _sample(vectors.num_vectors, num_training_vectors(settings, vectors.num_vectors), seed)
        sample_ND = vectors.rows(sample)
        with _of_faiss(settings):
            kept = without_warnings(index, vectors.num_dimensions)
            index.train(sample_ND)
            del kept
    for block_ND in vectors.blocks():
        with _of_faiss(settings):
            index.add(block_ND)
    return index


def own_class(index: faiss.Index) -> Any:
    """Return an index as the class that it is; faiss's type stubs leave out most of what these classes have."""
    return faiss.downcast_index(index)


def _of_faiss(settings: IndexSettings) -> AbstractContextManager[None]:
    return library_errors(
        f"retrieval.index of kind '{settings.kind}' cannot be made", "change its settings, or choose kind 'flat'"
    )


def set_search(index: faiss.Index, settings: IndexSettings, vectors: VectorSource | None = None) -> VectorIndex:
    """Return the index, set to search as the settings say; `vectors` are those of `refine = "disk"`."""
    parameters = faiss.ParameterSpace()
    if isinstance(settings, HnswIndexSettings):
        parameters.set_index_parameter(index, "efSearch", min(settings.ef_search, max(index.ntotal, 1)))
    if isinstance(settings, ListsSettings):
        lists = faiss.extract_index_ivf(index).nlist
        parameters.set_index_parameter(index, "nprobe", num_probes(settings, lists))
    if isinstance(settings, IvfPqIndexSettings) and settings.refine.startswith("sq"):
        parameters.set_index_parameter(index, "k_factor_rf", min(settings.candidates, max(index.ntotal, 1)))
    if compares_shards(settings):
        assert vectors is not None, "the settings compare candidates by the shards"
        return Refined(index, vectors, getattr(settings, "candidates", 1))
    return index


def _sample(num_vectors: int, num_drawn: int, seed: int) -> NDArray[np.int64]:
    drawn = np.random.default_rng(seed).choice(num_vectors, num_drawn, replace=False)
    return np.sort(drawn).astype(np.int64)


def _check_training(settings: IvfSqIndexSettings | IvfPqIndexSettings, num_vectors: int) -> None:
    lists = num_lists(settings, num_vectors)
    fewest = max(lists, _CODES_A_BYTE) if isinstance(settings, IvfPqIndexSettings) else lists
    if num_training_vectors(settings, num_vectors) < fewest:
        raise UserError(
            f"retrieval.index.num_training_vectors is {settings.num_training_vectors}, {lists} lists of kind "
            f"'{settings.kind}' need {fewest} or more; raise it, or leave it at 0"
        )


def _check_product(settings: IvfPqIndexSettings, num_vectors: int, num_dimensions: int) -> None:
    if num_dimensions % bytes_of_codes(settings, num_dimensions):
        raise UserError(
            f"retrieval.index.num_bytes is {settings.num_bytes}, the vectors have {num_dimensions} dimensions; "
            "expected a number that divides them"
        )
    if num_vectors < _CODES_A_BYTE:
        raise UserError(
            f"retrieval.index.kind 'ivf_pq' needs {_CODES_A_BYTE} vectors or more to train on, the corpus has "
            f"{num_vectors} passages; choose 'flat'"
        )


def without_warnings(index: faiss.Index, num_dimensions: int) -> list[Any]:
    """Let few vectors train without a warning a call; returns what must live until the training is over."""
    lists = own_class(faiss.extract_index_ivf(index))
    lists.cp.min_points_per_centroid = 1
    product = getattr(own_class(lists), "pq", None)
    if product is None:
        return []
    product.cp.min_points_per_centroid = 1
    lists.do_polysemous_training = False  # Minutes for an order of codes that only polysemous search would use.
    rotated = own_class(index)
    if isinstance(rotated, faiss.IndexRefine):
        rotated = own_class(rotated.base_index)
    if not isinstance(rotated, faiss.IndexPreTransform):
        return []
    first_step: Any = rotated.chain
    rotation: Any = faiss.downcast_VectorTransform(first_step.at(0))
    trained = faiss.ProductQuantizer(num_dimensions, product.M, 8)
    trained.cp.min_points_per_centroid = 1
    rotation.pq, rotation.niter = trained, _ROTATION_ROUNDS
    return [trained]
