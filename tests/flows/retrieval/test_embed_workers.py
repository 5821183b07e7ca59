"""A corpus embedded by several processes: the vectors of one, and what is made stays when a process fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from flows.app import run_command
from flows.jobs.orders import EmbedOrder
from flows.retrieval.embed_workers import embed_share, embed_side_by_side
from flows.retrieval.embedding import embed
from flows.retrieval.source import IndexSource
from schemas.errors import UserError
from schemas.settings.retrieval import DenseRetrievalSettings, LexicalEncoderSettings
from storage.retrieval.embeddings import Embeddings
from storage.workspace import Workspace

SETTINGS = ["retrieval.kind=dense", "retrieval.encoder.kind=lexical"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    drawn = np.random.default_rng(0)
    path = tmp_path / "c.jsonl"
    texts = [" ".join(f"w{word}" for word in drawn.integers(0, 80, 12)) for _ in range(400)]
    path.write_text("".join(json.dumps({"id": str(n), "contents": f'"T"\n{t}'}) + "\n" for n, t in enumerate(texts)))
    return path


def source_in(folder: Path, corpus: Path) -> IndexSource:
    settings = DenseRetrievalSettings(corpus=str(corpus), encoder=LexicalEncoderSettings())
    return IndexSource(settings, Workspace.open(folder))


def vectors(embeddings: Embeddings) -> np.ndarray:
    return np.concatenate(list(embeddings.blocks()))


def test_a_share_is_the_ordered_shards(corpus: Path, tmp_path: Path) -> None:
    source = source_in(tmp_path / "w", corpus)
    order = EmbedOrder(
        retrieval_json=source.settings.model_dump_json(), num_shards=4, only=(1, 2), workspace=str(tmp_path / "w")
    )
    embed_share(order, source.workspace)
    assert embed(source).made == [0, 3]


def test_workers_that_fail_are_told_and_what_is_made_is_kept(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_in(tmp_path / "w", corpus)
    first = embed(source, num_shards=3, only=[1]).embeddings
    fails = [sys.executable, "-c", "import sys; sys.stdin.readline(); print('no room'); sys.exit(1)"]
    monkeypatch.setattr("flows.jobs.processes._command", lambda: fails)
    with pytest.raises(UserError, match=r"2 of 2 workers failed: no room .*repeat the command to make the others"):
        embed_side_by_side(source, None, None, 4, lambda progress: None)
    assert first.missing() == [0, 2]


@pytest.mark.long
def test_two_workers_make_the_vectors_of_one(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = embed(source_in(tmp_path / "alone", corpus), num_shards=5).embeddings
    settings = [text for setting in [*SETTINGS, f"retrieval.corpus={corpus}"] for text in ("--set", setting)]
    command = ["corpus", "embed", "tiny", "--shards", "5", *settings, "--workspace", str(tmp_path / "two")]
    assert run_command([*command, "--workers", "2"]) == 0
    assert "5 shards made, 5 of 5 are there" in capsys.readouterr().out
    assert len(list((tmp_path / "two" / "logs").glob("embed-worker-*.log"))) == 2
    together = embed(source_in(tmp_path / "two", corpus)).embeddings
    np.testing.assert_array_equal(vectors(together), vectors(alone))
    assert run_command([*command, "--workers", "2"]) == 0
    assert "0 shards made, 5 of 5 are there" in capsys.readouterr().out
