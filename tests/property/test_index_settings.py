"""Any settings of an index over any few vectors: right passages, or one line that says why there can be none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.errors import UserError
from schemas.settings.retrieval import (
    FlatIndexSettings,
    HnswIndexSettings,
    IndexSettings,
    IvfPqIndexSettings,
    IvfSqIndexSettings,
)
from sdsearch.retrieval.kinds import build_vector_index, set_search

NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 50, 256, 10**6, 10**18])
CANDIDATES = st.sampled_from([1, 10, 10**12])
LISTS = {"num_lists": NUMBERS, "num_probes": NUMBERS, "num_training_vectors": NUMBERS, "candidates": CANDIDATES}
SETTINGS: st.SearchStrategy[IndexSettings] = st.one_of(
    st.just(FlatIndexSettings()),
    st.builds(
        HnswIndexSettings,
        num_neighbours=st.sampled_from([4, 5, 32, 1024]),
        ef_construction=st.sampled_from([1, 2, 200]),
        ef_search=st.sampled_from([1, 2, 10**12]),
    ),
    st.builds(IvfSqIndexSettings, **LISTS, bits=st.sampled_from([4, 6, 8]), refine=st.sampled_from(["none", "disk"])),
    st.builds(
        IvfPqIndexSettings,
        **LISTS,
        num_bytes=st.sampled_from([0, 1, 3, 8, 12, 100]),
        rotate=st.booleans(),
        refine=st.sampled_from(["none", "sq4", "sq6", "sq8", "disk"]),
    ),
)


class Drawn:
    """Unit vectors by their number and width."""

    def __init__(self, number: int, width: int) -> None:
        drawn_ND = np.random.default_rng([number, width]).normal(size=(number, width)).astype(np.float32)
        self.num_vectors, self.num_dimensions = number, width
        self.vectors_ND = drawn_ND / np.linalg.norm(drawn_ND, axis=1, keepdims=True)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        yield self.vectors_ND

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.vectors_ND[rows]
        return found


@given(SETTINGS, st.sampled_from([1, 2, 3, 40, 255, 256, 400]), st.sampled_from([1, 2, 7, 12, 33]))
def test_passages_or_one_line(settings: IndexSettings, number: int, width: int) -> None:
    vectors = Drawn(number, width)
    refusal = ""
    try:
        index = set_search(build_vector_index(settings, vectors), settings, vectors)
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith("retrieval.index.")
        assert "\n" not in refusal
        return
    queries_ND, num_hits = vectors.vectors_ND[:5], min(3, number)
    scores_NK, rows_NK = index.search(queries_ND, num_hits)
    assert rows_NK.shape == (len(queries_ND), num_hits)
    assert ((rows_NK >= -1) & (rows_NK < number)).all()
    assert np.isfinite(scores_NK[rows_NK >= 0]).all()
    assert all(len({*found}) == len(found) for row in rows_NK.tolist() if (found := [one for one in row if one >= 0]))
    if isinstance(settings, FlatIndexSettings) or (
        getattr(settings, "refine", "") == "disk"
        and getattr(settings, "candidates", 0) >= number
        and getattr(settings, "num_probes", 0) >= number
    ):
        best_NK = -np.sort(-queries_ND @ vectors.vectors_ND.T, axis=1)[:, :num_hits]
        np.testing.assert_allclose(scores_NK, best_NK, atol=1e-5)
