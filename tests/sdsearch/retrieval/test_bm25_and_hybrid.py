"""Search by words and by fused ranks, against the formulas; and their indexes on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pytest

import flows.retrieval.bm25
from flows.retrieval.open import build_indexes, open_local
from schemas.errors import UserError
from schemas.records.passage import Passage, SearchHit
from schemas.settings.retrieval import BM25RetrievalSettings, DenseRetrievalSettings, HybridRetrievalSettings
from sdsearch.retrieval.bm25 import BM25Retriever, build_bm25
from sdsearch.retrieval.hybrid import HybridRetriever
from sdsearch.retrieval.lexical import word_splitter
from sdsearch.retrieval.ports import RetrieverDownError
from storage.retrieval.bm25 import load_bm25, save_bm25
from storage.retrieval.indexes import IndexUnusableError
from storage.workspace import Workspace
from tests.sdsearch.retrieval.test_retrieval import QUERIES, TEXTS, bm25, make_passages


def of_texts(texts: list[str], k1: float = 0.9, b: float = 0.4) -> BM25Retriever:
    return BM25Retriever(build_bm25(lambda: texts, k1, b), make_passages(texts))


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.0), (2.0, 1.0)])
def test_scores_are_the_formulas_without_its_constant_factor(k1: float, b: float) -> None:
    for query, hits in zip(QUERIES, of_texts(TEXTS, k1, b).search(QUERIES, 10), strict=True):
        expected = np.array(bm25(query, TEXTS, k1, b)) / (k1 + 1)
        order = np.argsort(-expected, kind="stable")[: np.count_nonzero(expected)]
        assert [hit.passage.id for hit in hits] == [f"p{row}" for row in order]
        np.testing.assert_allclose([hit.score for hit in hits], expected[order], rtol=1e-5)


def test_the_index_is_the_librarys_own() -> None:
    texts = [*TEXTS, "", "Peru Peru Peru n"]
    ours, split = build_bm25(lambda: texts, 1.2, 0.7), word_splitter()
    library = bm25s.BM25(k1=1.2, b=0.7, method="lucene")
    library.index(([[ours.vocab_dict[word] for word in split(text)] for text in texts], ours.vocab_dict), False, False)
    for name in ("indices", "indptr", "num_docs"):
        np.testing.assert_array_equal(ours.scores[name], library.scores[name])
    np.testing.assert_allclose(ours.scores["data"], library.scores["data"], rtol=1e-6)


def test_what_shares_no_word_finds_nothing_and_equal_scores_keep_the_corpuss_order() -> None:
    retriever = of_texts([*TEXTS, *["a tree", "tree tree"] * 20, "unheard"])
    assert retriever.search(["", "zebra", "?!", "\ud800"], 3) == [()] * 4
    (hits,) = retriever.search(["tree"], 30)
    assert [hit.passage.id for hit in hits] == [f"p{row}" for row in (*range(7, 46, 2), *range(6, 26, 2))]
    assert [hit.passage.id for hit in retriever.search(["LÍMA unheard"], 50)[0]] == ["p46", "p0"]
    assert retriever.search([], 3) == []
    with pytest.raises(UserError, match="holds no word to search by"):
        build_bm25(lambda: ["?", ""], 0.9, 0.4)


class Fixed:
    """Finds the same passages, in this order, for every query."""

    def __init__(self, ids: str) -> None:
        self._hits = tuple(SearchHit(passage=Passage(id=i, title="", text=i), score=1.0) for i in ids)
        self.asked: list[int] = []

    def search(self, queries: Any, top_k: int) -> Any:
        self.asked.append(top_k)
        return [self._hits[:top_k] for _ in queries]


def test_ranks_are_fused_by_the_formula() -> None:
    sides = Fixed("abcd"), Fixed("cxa")
    (hits,) = HybridRetriever(sides, [], rrf_k=60, depth=4).search(["q"], 4)
    expected = {"a": 1 / 61 + 1 / 63, "c": 1 / 63 + 1 / 61, "b": 1 / 62, "x": 1 / 62}
    assert {hit.passage.id: hit.score for hit in hits} == pytest.approx(expected)
    assert [hit.passage.id for hit in hits] == ["a", "c", "b", "x"], "of equals, the first side's go first"
    assert sides[0].asked == [4]
    ((best,),) = HybridRetriever([Fixed("ab"), Fixed("cb")], [], rrf_k=60, depth=2).search(["q"], 1)
    assert best.passage.id == "b", "what both found beats what one found first"
    assert HybridRetriever([Fixed(""), Fixed("")], [], 60, 3).search(["q"], 2) == [()]


def test_a_side_that_fails_is_an_error_and_not_half_an_answer() -> None:
    class Broken:
        def search(self, queries: Any, top_k: int) -> Any:
            raise OSError("the disk is gone")

    with pytest.raises(RetrieverDownError, match="the disk is gone"):
        HybridRetriever([Fixed("ab"), Broken()], [], 60, 3).search(["q"], 1)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.jsonl", TEXTS)


def write_corpus(path: Path, texts: list[str]) -> Path:
    rows = [{"id": p.id, "contents": p.contents} for p in make_passages(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_indexes_are_built_once_and_opened_from_the_disk(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace.open(tmp_path / "home")
    settings = HybridRetrievalSettings(corpus=str(corpus))
    first, fingerprint = open_local(settings, workspace)
    with monkeypatch.context() as patch:
        patch.setattr(flows.retrieval.bm25, "build_bm25", None)
        again, same = open_local(settings, workspace)
    assert same == fingerprint
    assert again.search(QUERIES, 3) == first.search(QUERIES, 3)
    assert len(again.passages) == len(TEXTS)
    others = [
        DenseRetrievalSettings(corpus=str(corpus)),
        BM25RetrievalSettings(corpus=str(corpus)),
        BM25RetrievalSettings(corpus=str(write_corpus(tmp_path / "another.jsonl", TEXTS[:3]))),
        settings.model_copy(update={"k1": 1.0}),
        settings.model_copy(update={"b": 0.5}),
        settings.model_copy(update={"rrf_k": 61}),
        settings.model_copy(update={"depth": 51}),
    ]
    assert len({fingerprint, *(open_local(other, workspace)[1] for other in others)}) == 8
    assert [report.size for report in build_indexes(settings, workspace)] == ["2048 dimensions", "34 words"]


def test_a_damaged_index_is_built_again_and_one_of_something_else_refused(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = Workspace.open(tmp_path / "home")
    settings = BM25RetrievalSettings(corpus=str(corpus))
    found = open_local(settings, workspace)[0].search(QUERIES, 3)
    (folder,) = workspace.indexes.iterdir()
    data = folder / "data.csc.index.npy"
    data.write_bytes(data.read_bytes()[:-4] + b"\0\0\0\0")
    assert open_local(settings, workspace)[0].search(QUERIES, 3) == found
    assert "the index is built again" in caplog.text
    save_bm25(folder, build_bm25(lambda: TEXTS, 0.9, 0.4), "corpus one", "recipe one")
    for hashes, said in ((("corpus two", "recipe one"), "corpus"), (("corpus one", "recipe two"), "recipe")):
        with pytest.raises(IndexUnusableError, match=rf"built with .* {said} one.* {said} two"):
            load_bm25(folder, *hashes)
