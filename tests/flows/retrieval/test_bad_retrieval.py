"""Retrieval that cannot work: exit code 2 and one line, before a run begins, and foreseen by doctor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from flows.app import run_command
from tests.sdsearch.retrieval.test_http_retriever import misbehaving
from tests.sdsearch.retrieval.test_retrieval import TEXTS, make_bert_parts

Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def quiet_libraries() -> None:
    """The command quietens transformers before it loads; here other tests may have loaded it already."""
    disable_progress_bar()
    set_verbosity_error()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [{"id": str(number), "contents": f'"T"\n{text}'} for number, text in enumerate(TEXTS)]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Have train refuse what [retrieval] says, see that doctor foresees it, and return train's one line."""

    def run(retrieval: str) -> str:
        capsys.readouterr()
        options = ["--set", f"retrieval={retrieval}", "--set", "model.torch_threads=1"]
        options += ["--workspace", str(tmp_path / "workspace")]
        assert run_command(["train", "tiny", "--no-prefect", *options]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1, error
        assert not list((tmp_path / "workspace" / "artifacts").glob("run=*"))
        assert run_command(["doctor", "tiny", *options]) == 1
        foreseen = " ".join(capsys.readouterr().out.split())
        assert " ".join(error.removeprefix("error: ").split()) in foreseen
        return error

    return run


def save_encoder(folder: Path, weight: float | None = None) -> Path:
    """A random BERT; `weight` is what its last layer's scale becomes."""
    model, tokenizer = make_bert_parts()
    if weight is not None:
        with torch.no_grad():
            model.encoder.layer[1].output.LayerNorm.weight.fill_(weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_encoder_of_nan(corpus: Path, tmp_path: Path, refused: Refused) -> None:
    encoder = save_encoder(tmp_path / "encoder", math.nan)
    retrieval = f"{{kind='hybrid', corpus='{corpus}', encoder={{kind='hf', path='{encoder}', max_length=64}}}}"
    for command in (["index", "build"], ["corpus", "embed"], ["index", "evaluate"], ["retriever", "serve"]):
        arguments = [*command, "tiny", "--workspace", str(tmp_path / "home"), "--set", f"retrieval={retrieval}"]
        assert run_command(arguments) == 2, command
    assert not list((tmp_path / "home" / "indexes").glob("*/vectors.faiss"))
    assert "the encoder gives vectors that are not finite" in refused(retrieval)


def test_an_index_that_faiss_refuses(corpus: Path, tmp_path: Path, refused: Refused) -> None:
    rows = [{"id": str(number), "contents": f'"T"\ntext {number}'} for number in range(400)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run_command(["corpus", "import", str(corpus), "--workspace", str(tmp_path / "workspace")]) == 0
    index = "{kind='ivf_sq', num_lists=100, num_training_vectors=5}"
    message = refused(f"{{kind='dense', corpus='{corpus}', index={index}}}")
    assert "retrieval.index.num_training_vectors is 5, 100 lists of kind 'ivf_sq' need 100 or more" in message


def test_a_corpus_that_is_none(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "folder").mkdir()
    assert "folder: no corpus here (manifest.json is missing)" in refused(
        f"{{kind='bm25', corpus='{tmp_path / 'folder'}'}}"
    )
    assert "can be no path: a name in it is longer than 255 bytes" in refused(f"{{kind='bm25', corpus='{'x' * 300}'}}")


def test_a_server_of_another_protocol(refused: Refused) -> None:
    """It answers, so that it does not look down; that it does not search shows when it is asked to."""
    with misbehaving(lambda _: (404, b"no such page")) as (url, _):
        message = refused(f"{{kind='http', urls=['{url}'], max_attempts=1, backoff_s=0.0}}")
    assert f"{url}: status 404, 'no such page'" in message


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("retrieval.encoder={kind='lexical', seed=-1}", "retrieval.encoder.seed: expected integer ≥ 0, got -1"),
        ("retrieval.encoder={kind='lexical', num_dimensions=100000000000}", "expected integer ≥ 0 and ≤ 65536, got"),
        ("retrieval.encoder={kind='lexical', k1=1e308}", "encoder.k1: expected number ≥ 0 and ≤ 1000, got"),
        ("retrieval.cache_max_entries=1000000000000000000000", "cache_max_entries: expected integer ≥ 1 and ≤"),
        ("retrieval={kind='http', urls=['http://h:1'], timeout_s=1e300}", "retrieval.timeout_s: expected number > 0"),
        (
            "retrieval={kind='http', urls=['http://h:abc']}",
            "retrieval.urls: 'http://h:abc' has no port from 1",
        ),
        ("retrieval={kind='http', urls=['http://h:99999']}", "retrieval.urls: 'http://h:99999' has no port from 1"),
        ("retrieval={kind='http', urls=['http://.:80']}", "retrieval.urls: 'http://.:80' has no host's name"),
        ("sampling={kind='vllm_server', urls=['http://h:abc']}", "sampling.urls: 'http://h:abc' has no port from 1"),
        ("retrieval={kind='http', urls=['h:80']}", "retrieval.urls: expected non-empty array of"),
    ],
)
def test_values_that_no_run_could_begin_with(setting: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "doctor"):
        assert run_command([command, "tiny", "--set", setting]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
