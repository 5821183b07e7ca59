"""A run's index: built once for its corpus and encoder, then opened; any other corpus or encoder gets its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

import flows.retrieval.dense
from flows.retrieval.open import open_retriever
from schemas.settings.retrieval import DenseRetrievalSettings, HFEncoderSettings, LexicalEncoderSettings
from storage.workspace import Workspace
from tests.support.builders import make_tokenizer


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [{"id": str(i), "contents": f'"Title {i}"\nThe river {word} runs.'} for i, word in enumerate("abcdefgh")]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_an_index_is_built_once(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.open(tmp_path / "home")
    settings = DenseRetrievalSettings(corpus=str(corpus), encoder=LexicalEncoderSettings(num_dimensions=0))
    first, fingerprint = open_retriever(settings, workspace)
    assert first.search(["river c"], 1)[0][0].passage.id == "2"
    with monkeypatch.context() as patch:
        patch.setattr(flows.retrieval.dense, "_build", None)
        again, same = open_retriever(settings, workspace)
    assert same == fingerprint
    assert again.search(["river c"], 3) == first.search(["river c"], 3)
    corpus.write_text(corpus.read_text().replace("runs", "flows"))
    other, changed = open_retriever(settings, workspace)
    assert changed != fingerprint
    assert "flows" in other.search(["river c"], 1)[0][0].passage.text


def test_a_sentence_encoder_by_settings(corpus: Path, encoder_folder: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "home")
    encoder = HFEncoderSettings(path=str(encoder_folder), max_length=32, batch_size=3)
    retriever, fingerprint = open_retriever(DenseRetrievalSettings(corpus=str(corpus), encoder=encoder), workspace)
    text = retriever.passages[5].contents
    plain = encoder.model_copy(update={"query_prefix": "", "passage_prefix": ""})
    unprefixed, other = open_retriever(DenseRetrievalSettings(corpus=str(corpus), encoder=plain), workspace)
    assert other != fingerprint
    assert unprefixed.search([text], 1)[0][0].passage.id == "5"
    assert unprefixed.search([text], 1)[0][0].score == pytest.approx(1.0, abs=1e-5)
