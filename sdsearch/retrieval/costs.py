"""What an index of a corpus would cost: sizes by arithmetic, times from small measurements on this machine.

Shape suffixes: `N` vectors, `D` vector width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, assert_never

import faiss
import numpy as np
from numpy.typing import NDArray

from schemas.settings.retrieval import (
    FlatIndexSettings,
    HnswIndexSettings,
    IndexSettings,
    IvfPqIndexSettings,
    IvfSqIndexSettings,
)
from sdsearch.retrieval.kinds import (
    bytes_of_codes,
    compares_shards,
    num_lists,
    num_probes,
    num_training_vectors,
    own_class,
)

_MEASURED_VECTORS: Final = 4096
_GRAPH_VECTORS: Final = 2048
_CLUSTERING_ROUNDS: Final = 10
_ID_BYTES: Final = 8
_LINK_BYTES: Final = 4
CANDIDATES: Final[tuple[tuple[str, IndexSettings], ...]] = (
    ("flat", FlatIndexSettings()),
    ("hnsw", HnswIndexSettings()),
    ("ivf_sq, 8 bits", IvfSqIndexSettings(bits=8, refine="none")),
    ("ivf_sq, 6 bits", IvfSqIndexSettings(bits=6, refine="none")),
    ("ivf_sq, 6 bits, refine disk", IvfSqIndexSettings(bits=6)),
    ("ivf_sq, 4 bits, refine disk", IvfSqIndexSettings()),
    ("ivf_pq, refine sq4", IvfPqIndexSettings(refine="sq4")),
    ("ivf_pq, refine disk", IvfPqIndexSettings()),
)


class Speeds(NamedTuple):
    """What this machine does with vectors of one width, seconds of one core each."""

    product_s: float  # one multiplication and addition of a dense product
    encode_s: dict[str, float]  # a vector, by quantiser
    scan_s: dict[str, float]  # a vector that is compared with a query, by quantiser
    link_s: float  # a vector that is put into a graph of _GRAPH_VECTORS


class Cost(NamedTuple):
    """What an index would cost; seconds of one core."""

    kind: str
    settings: IndexSettings
    bytes_a_vector: float
    memory_gb: float
    disk_gb: float
    build_s: float
    query_s: float


def measure_speeds(num_dimensions: int) -> Speeds:
    """Time each step on random vectors; some seconds."""
    vectors_ND = np.random.default_rng(0).standard_normal((_MEASURED_VECTORS, num_dimensions), dtype=np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    product_s = _seconds(lambda: vectors_ND[:512] @ vectors_ND.T) / (512 * vectors_ND.size)
    encode_s, scan_s = {}, {}
    for name in ("Flat", "SQ8", "SQ6", "SQ4", f"PQ{bytes_of_codes(IvfPqIndexSettings(), num_dimensions)}x4"):
        # Codes of four bits instead of eight train and encode 16 times sooner, and are scanned in the same time.
        index = faiss.index_factory(num_dimensions, name, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors_ND)
        key, factor = ("PQ", 16.0) if name.startswith("PQ") else (name, 1.0)
        encode_s[key] = factor * _seconds(partial(index.add, vectors_ND)) / len(vectors_ND)
        scan_s[key] = _seconds(partial(index.search, vectors_ND[:8], 10)) / (8 * index.ntotal)
    return Speeds(product_s, encode_s, scan_s, _link_seconds(vectors_ND[:_GRAPH_VECTORS]))


def estimate_costs(num_passages: int, num_dimensions: int, speeds: Speeds) -> list[Cost]:
    """Return the cost of each kind; beyond the few thousand vectors that were timed everything is extrapolated."""
    return [_cost(name, settings, num_passages, num_dimensions, speeds) for name, settings in CANDIDATES]


def bytes_a_vector(settings: IndexSettings, num_dimensions: int) -> float:
    """Return the bytes that a vector takes in memory, without what is there once."""
    match settings:
        case FlatIndexSettings():
            return 4.0 * num_dimensions
        case HnswIndexSettings():
            # Twice M links on the lowest level, where every vector is; M on each of 1/M as many above.
            links = 2 * settings.num_neighbours + settings.num_neighbours / (settings.num_neighbours - 1)
            return 4.0 * num_dimensions + _LINK_BYTES * links + 2 * _ID_BYTES
        case IvfSqIndexSettings():
            return num_dimensions * settings.bits / 8 + _ID_BYTES
        case IvfPqIndexSettings():
            finer = num_dimensions * int(settings.refine[2:]) / 8 if settings.refine.startswith("sq") else 0.0
            return bytes_of_codes(settings, num_dimensions) + _ID_BYTES + finer
        case unknown:
            assert_never(unknown)


def _cost(name: str, settings: IndexSettings, num_vectors: int, num_dimensions: int, speeds: Speeds) -> Cost:
    each = bytes_a_vector(settings, num_dimensions)
    once = 0.0
    match settings:
        case FlatIndexSettings():
            build_s, query_s = num_vectors * speeds.encode_s["Flat"], num_vectors * speeds.scan_s["Flat"]
        case HnswIndexSettings():
            growth = math.log(max(num_vectors, 2)) / math.log(_GRAPH_VECTORS)
            build_s = num_vectors * speeds.link_s * growth
            query_s = speeds.link_s * growth * settings.ef_search / settings.ef_construction
        case IvfSqIndexSettings() | IvfPqIndexSettings():
            lists = num_lists(settings, num_vectors)
            once = 4.0 * num_dimensions * lists
            build_s, query_s = _lists_times(settings, num_vectors, num_dimensions, speeds)
        case unknown:
            assert_never(unknown)
    memory = num_vectors * each + once
    shards = 2.0 * num_vectors * num_dimensions if compares_shards(settings) else 0.0
    return Cost(name, settings, each, memory / 1e9, (memory + shards) / 1e9, build_s, query_s)


def _lists_times(
    settings: IvfSqIndexSettings | IvfPqIndexSettings, num_vectors: int, num_dimensions: int, speeds: Speeds
) -> tuple[float, float]:
    """Return seconds of a build and of a query: centroids, lists, codes."""
    lists, codes = num_lists(settings, num_vectors), "PQ" if settings.kind == "ivf_pq" else f"SQ{settings.bits}"
    to_lists_s = lists * num_dimensions * speeds.product_s
    trained_s = _CLUSTERING_ROUNDS * num_training_vectors(settings, num_vectors) * to_lists_s
    build_s = trained_s + num_vectors * (to_lists_s + speeds.encode_s[codes])
    query_s = to_lists_s + num_vectors * num_probes(settings, lists) / lists * speeds.scan_s[codes]
    return build_s, query_s


def _link_seconds(vectors_ND: NDArray[np.float32]) -> float:
    settings = HnswIndexSettings()
    index = faiss.index_factory(vectors_ND.shape[1], f"HNSW{settings.num_neighbours}", faiss.METRIC_INNER_PRODUCT)
    own_class(index).hnsw.efConstruction = settings.ef_construction
    return _seconds(lambda: index.add(vectors_ND)) / len(vectors_ND)


def _seconds(work: Callable[[], object]) -> float:
    """Return seconds of the processor, all threads together: what else the machine does hardly counts."""
    started = time.process_time()
    work()
    return time.process_time() - started
