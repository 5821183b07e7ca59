"""Shards of vectors and the indexes made from them: restarted, shared, damaged, searched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.app import run_command
from flows.console.errors import UserError
from flows.retrieval.dense import open_dense
from flows.retrieval.embedding import embed, embed_all
from flows.retrieval.source import IndexSource
from schemas.settings.retrieval import (
    DenseRetrievalSettings,
    HnswIndexSettings,
    IvfPqIndexSettings,
    IvfSqIndexSettings,
    LexicalEncoderSettings,
)
from sdsearch.retrieval.kinds import Refined
from storage.disk.files import temporary_name
from storage.retrieval.embeddings import EmbeddingsUnusableError
from storage.retrieval.indexes import IndexUnusableError, load_index
from storage.workspace import Workspace

NUM_PASSAGES = 600
WORDS = [f"{first}{second}" for first in "abcdefghij" for second in "klmnopqrst"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    drawn = np.random.default_rng(0)
    texts = [" ".join(drawn.choice(WORDS, 12)) for _ in range(NUM_PASSAGES)]
    path = tmp_path / "c.jsonl"
    path.write_text(
        "".join(json.dumps({"id": str(n), "contents": f'"T"\n{text}'}) + "\n" for n, text in enumerate(texts))
    )
    return path


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


def source_of(corpus: Path, workspace: Workspace, **changes: Any) -> IndexSource:
    settings = DenseRetrievalSettings(corpus=str(corpus), encoder=LexicalEncoderSettings(num_dimensions=33))
    return IndexSource(settings.model_copy(update=changes), workspace)


def whole(source: IndexSource) -> np.ndarray[Any, Any]:
    encoder, _ = source.fit_encoder()
    return np.asarray(encoder.encode(list(source.corpus.passages.contents(0, NUM_PASSAGES)), "passage"))


def test_shards_hold_the_vectors_of_all_passages_in_their_order(corpus: Path, workspace: Workspace) -> None:
    source = source_of(corpus, workspace)
    embeddings = embed(source, num_shards=7).embeddings
    expected = whole(source)
    assert [len(embeddings.rows_of(shard)) for shard in range(7)] == [85, 86, 86, 85, 86, 86, 86]
    np.testing.assert_array_equal(np.concatenate(list(embeddings.blocks())), expected)
    rows = np.array([599, 0, 85, 84, 300])
    np.testing.assert_array_equal(embeddings.rows(rows), expected[rows])
    halved = embed(source_of(corpus, workspace, vector_dtype="float16"), num_shards=2).embeddings
    np.testing.assert_array_equal(np.concatenate(list(halved.blocks())), expected.astype(np.float16).astype(np.float32))


def test_embedding_goes_on_at_the_missing_shards(corpus: Path, workspace: Workspace) -> None:
    source = source_of(corpus, workspace)
    first = embed(source, num_shards=4, only=range(1, 3))
    assert first.made == [1, 2]
    assert first.embeddings.missing() == [0, 3]
    shard, left = first.embeddings.folder / "shard-00002-of-00004.npy", first.embeddings.folder
    shard.write_bytes(shard.read_bytes()[:-1])
    (left / temporary_name("shard-00003-of-00004.npy")).write_bytes(b"half")
    assert embed(source_of(corpus, workspace)).made == [0, 2, 3], "the truncated one is made again"
    assert not list(left.glob(".*"))
    assert embed(source).made == []
    with pytest.raises(EmbeddingsUnusableError, match=r"begun with 4 shards, asked for 5"):
        embed(source, num_shards=5)
    with pytest.raises(UserError, match=r"--only .*within 0:3"):
        embed(source, only=range(2, 5))


def test_a_shard_that_another_process_makes_is_left_to_it(corpus: Path, workspace: Workspace) -> None:
    source = source_of(corpus, workspace)
    embeddings = embed(source, num_shards=3, only=[0]).embeddings
    with embeddings.claimed(1) as is_ours:
        assert is_ours
        assert embed(source_of(corpus, workspace)).made == [2]
        with pytest.raises(EmbeddingsUnusableError, match="other processes are making shards 1; wait"):
            embed_all(source)
    assert embed(source).made == [1], "a claim ends with its process"


def test_a_damaged_shard_is_named_when_an_index_is_built(corpus: Path, workspace: Workspace) -> None:
    source = source_of(corpus, workspace, index=HnswIndexSettings())
    shard = embed(source, num_shards=2).embeddings.folder / "shard-00001-of-00002.npy"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(EmbeddingsUnusableError, match=r"shard-00001-of-00002\.npy: .*not what was written; delete it"):
        open_dense(source.settings, workspace)
    shard.unlink()
    open_dense(source.settings, workspace)


KINDS = [
    (HnswIndexSettings(), 0.98),
    (IvfSqIndexSettings(bits=8, num_lists=8, num_probes=8, refine="none"), 0.97),
    (IvfSqIndexSettings(bits=6, num_lists=8, num_probes=8, refine="none"), 0.93),
    (IvfSqIndexSettings(num_lists=8), 0.99),
    (IvfPqIndexSettings(num_bytes=11, num_lists=8, num_probes=8, refine="sq8"), 0.95),
    (IvfPqIndexSettings(num_bytes=11, num_lists=8, num_probes=8, refine="disk"), 0.99),
]


@pytest.mark.parametrize(("index", "least"), KINDS, ids=lambda value: getattr(value, "kind", None))
def test_every_kind_finds_nearly_what_exact_search_finds(
    index: Any, least: float, corpus: Path, workspace: Workspace
) -> None:
    exact, exact_print = open_dense(source_of(corpus, workspace).settings, workspace)
    source = source_of(corpus, workspace, index=index)
    retriever, fingerprint = open_dense(source.settings, workspace)
    assert fingerprint != exact_print
    queries = [" ".join(np.random.default_rng(n).choice(WORDS, 4)) for n in range(60)]
    wanted = [{hit.passage.id for hit in hits} for hits in exact.search(queries, 3)]
    found = [{hit.passage.id for hit in hits} for hits in retriever.search(queries, 3)]
    assert np.mean([len(a & b) / 3 for a, b in zip(wanted, found, strict=True)]) >= least
    again, _ = open_dense(source.settings, workspace)
    assert again.search(queries, 3) == retriever.search(queries, 3)


def test_flat_from_shards_is_the_flat_index(corpus: Path, workspace: Workspace, tmp_path: Path) -> None:
    direct, sharded = source_of(corpus, workspace), source_of(corpus, Workspace.open(tmp_path / "other"))
    open_dense(direct.settings, direct.workspace)
    embed(sharded, num_shards=3)
    open_dense(sharded.settings, sharded.workspace)
    written = [(one.folder / "vectors.faiss").read_bytes() for one in (direct, sharded)]
    assert written[0] == written[1]


def test_how_an_index_is_searched_needs_no_new_one(corpus: Path, workspace: Workspace) -> None:
    lists = IvfSqIndexSettings(num_lists=8, num_probes=1)
    one, print_one = open_dense(source_of(corpus, workspace, index=lists).settings, workspace)
    more = lists.model_copy(update={"num_probes": 8})
    all_, print_all = open_dense(source_of(corpus, workspace, index=more).settings, workspace)
    assert print_one != print_all
    assert len(list(workspace.indexes.iterdir())) == 1
    texts = list(one.passages.contents(0, 20))  # type: ignore[attr-defined]
    assert one.search(texts, 10) != all_.search(texts, 10)
    bits = source_of(corpus, workspace, index=more.model_copy(update={"bits": 8}))
    with pytest.raises(IndexUnusableError, match=r"the index is of another sort: .*build the index again"):
        load_index(next(workspace.indexes.iterdir()), bits.identity)


def test_missing_candidates_are_no_passages() -> None:
    class Base:
        ntotal, d = 5, 2

        def search(self, queries_ND: Any, num_hits: int) -> tuple[Any, Any]:
            return None, np.array([[3, -1, 1, -1]])

    class Vectors:
        def rows(self, rows: Any) -> Any:
            return np.array([[0.0, float(row)] for row in rows], dtype=np.float32)

    scores, rows = Refined(Base(), Vectors(), 10).search(np.array([[0.0, -1.0]], dtype=np.float32), 3)  # type: ignore[arg-type]
    assert rows.tolist() == [[1, 3, -1]], "row -1, whose vector would be the nearest, stands for nothing"
    assert scores[0, :2].tolist() == [-1.0, -3.0]


def test_an_index_that_cannot_be_made_is_refused(corpus: Path, workspace: Workspace) -> None:
    source = source_of(corpus, workspace, index=IvfPqIndexSettings(num_bytes=10))
    with pytest.raises(UserError, match=r"num_bytes is 10, the vectors have 33 dimensions"):
        open_dense(source.settings, workspace)
    assert not list(workspace.indexes.glob("*"))


def test_the_command_prints_what_is_made_and_missing(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["corpus", "embed", "tiny", "--set", f"retrieval.corpus={corpus}", "--workspace", str(tmp_path / "home")]
    command += ["--set", "retrieval.encoder.kind=lexical", "--set", "retrieval.encoder.num_dimensions=33"]
    assert run_command([*command, "--shards", "4", "--only", "1:2"]) == 0
    output = capsys.readouterr().out
    assert "2 shards made, 2 of 4 are there; 33 x float32, 300 passages" in output
    assert "missing: 0, 3" in output
    assert run_command([*command, "--only", "x"]) == 2
    assert "--only 'x' names no shards" in capsys.readouterr().err
    assert run_command(command) == 0
    assert "2 shards made, 4 of 4" in capsys.readouterr().out
