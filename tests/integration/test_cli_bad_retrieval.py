"""Retrieval that cannot work: exit code 2 and one line, before a run begins, and foreseen by doctor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from flows.cli import run_command
from tests.unit.test_retrieval import TEXTS, make_bert_parts

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
