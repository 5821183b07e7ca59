"""`sdsearch index evaluate` and `sdsearch index estimate`: what they measure, what they print, what they refuse."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from flows.app import run_command
from flows.data.questions import Questions
from flows.retrieval.open import open_retriever
from flows.settings.load import load_settings
from schemas.settings.retrieval import FlatIndexSettings, HnswIndexSettings, IvfPqIndexSettings, IvfSqIndexSettings
from sdsearch.credit.scoring import contains_answer
from sdsearch.retrieval.costs import Speeds, bytes_a_vector, estimate_costs
from sdsearch.retrieval.kinds import VectorSource, build_vector_index
from sdsearch.retrieval.recall import evaluate_index, search_exactly
from storage.workspace import Workspace


class Vectors:
    """Vectors in memory."""

    def __init__(self, vectors_ND: Any) -> None:
        self.vectors_ND = vectors_ND
        self.num_vectors, self.num_dimensions = vectors_ND.shape

    def blocks(self) -> Any:
        return iter(np.array_split(self.vectors_ND, 7))

    def rows(self, rows: Any) -> Any:
        return self.vectors_ND[rows]


@pytest.fixture(scope="module")
def vectors() -> VectorSource:
    drawn = np.random.default_rng(0).standard_normal((6000, 32), dtype=np.float32)
    return Vectors(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def test_recall_is_the_share_of_the_best_that_is_found(vectors: Any) -> None:
    queries_QD = np.random.default_rng(1).standard_normal((20, 32), dtype=np.float32)
    exact = search_exactly(vectors, queries_QD)
    expected = -np.sort(-(queries_QD @ vectors.vectors_ND.T), axis=1)[:, :10]
    np.testing.assert_allclose(exact.scores_QK, expected, rtol=1e-5)

    class Best:
        """Finds the best passage, again and again, and at last nothing."""

        ntotal, d = 6000, 32

        def search(self, queries: Any, num_hits: int) -> tuple[Any, Any]:
            best = np.argmax(queries @ vectors.vectors_ND.T, axis=1)
            return None, np.stack([best] * num_hits, axis=1) if num_hits < 10 else np.full((len(queries), 10), -1)

    asked_QD = np.vstack([queries_QD, vectors.vectors_ND[-1:]])
    found = evaluate_index(Best(), vectors, asked_QD, search_exactly(vectors, asked_QD)).recall
    assert found == pytest.approx((1.0, 1 / 3, 0.0)), "a passage counts once, and row -1 is none, not the last one"
    flat = build_vector_index(FlatIndexSettings(), vectors)
    assert evaluate_index(flat, vectors, queries_QD, exact).recall == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "settings",
    [
        FlatIndexSettings(),
        HnswIndexSettings(num_neighbours=16, ef_construction=20),
        IvfSqIndexSettings(bits=4, num_lists=4),
        IvfPqIndexSettings(num_lists=4, num_bytes=2, refine="sq6"),
    ],
    ids=lambda value: value.kind,
)
def test_the_plans_bytes_are_those_of_a_real_index(settings: Any, vectors: Any) -> None:
    """The difference of two sizes leaves out what is there once."""
    sizes = [
        len(faiss.serialize_index(build_vector_index(settings, Vectors(vectors.vectors_ND[:count]))))
        for count in (3000, 6000)
    ]
    assert (sizes[1] - sizes[0]) / 3000 == pytest.approx(bytes_a_vector(settings, 32), rel=0.02)


def test_a_plan_grows_with_the_corpus() -> None:
    codes = dict.fromkeys(("Flat", "SQ8", "SQ6", "SQ4", "PQ"), 1e-6)
    small, large = (
        estimate_costs(number, 768, Speeds(1e-11, codes, codes, 1e-4)) for number in (1_000_000, 21_015_324)
    )
    assert [cost.kind for cost in small] == [cost.kind for cost in large]
    for before, after in zip(small, large, strict=True):
        assert after.memory_gb / before.memory_gb == pytest.approx(20.0, rel=0.06)
        assert after.build_s > 20 * before.build_s
    assert next(cost for cost in large if cost.kind == "flat").memory_gb == pytest.approx(64.56, abs=0.01)


def expected_hits(workspace: Path) -> dict[str, float]:
    """Return hit@k of the drawn training questions, asked one by one of the retriever that a run would have."""
    settings = load_settings("tiny", ["retrieval.encoder.kind=lexical", "retrieval.encoder.num_dimensions=65"])
    retriever, _ = open_retriever(settings.retrieval, Workspace.open(workspace))
    questions = random.Random(0).sample(Questions(settings.data).training, 50)
    places = []
    for question in questions:
        (hits,) = retriever.search([question.question], 10)
        holds = [contains_answer(hit.passage, question.golden_answers) for hit in hits]
        places.append(holds.index(True) if True in holds else 99)
    return {str(rank): sum(place < rank for place in places) / 50 for rank in (1, 3, 10)}


def test_evaluate_prints_a_row_an_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["index", "evaluate", "tiny", "--workspace", str(tmp_path / "home"), "--queries", "50"]
    command += ["--set", "retrieval.encoder.kind=lexical", "--set", "retrieval.encoder.num_dimensions=65"]
    command += ["--set", "retrieval.index.kind=ivf_sq", "--set", "retrieval.index.num_lists=8"]
    assert run_command([*command, "--kinds", "flat,ivf_sq", "--out", str(tmp_path / "table.json")]) == 0
    output = capsys.readouterr().out
    assert "4,879 passages, 65 dimensions, 50 queries" in output
    flat, lists = json.loads((tmp_path / "table.json").read_text())
    assert flat["recall"] == {"1": 1.0, "3": 1.0, "10": 1.0}
    assert 0.8 < lists["recall"]["3"] <= 1.0
    assert lists["name"].startswith("ivf_sq num_lists=8")
    assert "hit@3" in output
    assert flat["hits"] == expected_hits(tmp_path / "home"), "of exact search, as the run's own retriever finds"
    (tmp_path / "queries.txt").write_text("capital of Peru\n", encoding="utf-8")
    of_file = [*command[:5], "--queries", str(tmp_path / "queries.txt"), *command[7:], "--kinds", "flat"]
    assert run_command(of_file) == 0
    assert "hit@" not in capsys.readouterr().out, "lines of a file have no golden answers"
    assert flat["memory_mb"] == pytest.approx(4879 * 65 * 4 / 1e6, rel=0.01)
    assert run_command([*command, "--kinds", "flat,round"]) == 2
    assert "--kinds names 'round'; expected some of flat, hnsw, ivf_sq, ivf_pq" in capsys.readouterr().err
    assert run_command([*command[:5], "--queries", str(tmp_path / "none.txt")]) == 2
    assert "is no number and cannot be read" in capsys.readouterr().err


def test_plan_recommends_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["index", "estimate", "--passages", "100000", "--dim", "16", "--ram-gb", "1"]) == 0
    output = capsys.readouterr().out
    assert "extrapolated from" in output
    assert "for 1 GB: flat" in output
