"""What an encoder gives: vectors of the texts, or an error before an index is made or a search is believed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel, T5Config, T5Model

from schemas.errors import UserError
from schemas.records.passage import Passage
from schemas.settings.retrieval import IndexSettings, IvfPqIndexSettings, IvfSqIndexSettings
from sdsearch.retrieval.dense import DenseRetriever, build_dense_retriever, encode_blocks
from sdsearch.retrieval.hf import HFEncoder, HFSettings
from sdsearch.retrieval.kinds import build_vector_index
from sdsearch.retrieval.ports import RetrieverDownError, search_all
from sdsearch.retrieval.vectors import encode_texts
from tests.sdsearch.retrieval.test_retrieval import make_bert_parts

PASSAGES = [Passage(id=str(number), title="T", text=f"text {number}") for number in range(4)]
SHORT = HFSettings(max_length=64)


class Giving:
    """An encoder that gives what it is told for queries, for passages, or for both."""

    def __init__(self, give: Any, of: tuple[str, ...] = ("query", "passage")) -> None:
        self._give, self._of = give, of

    def encode(self, texts: Sequence[str], kind: str) -> Any:
        whole = np.eye(len(texts), 3, dtype=np.float32)
        return self._give(whole) if kind in self._of else whole


def raising(error: Exception) -> Any:
    def give(_: Any) -> Any:
        raise error

    return give


def with_number(number: float) -> Any:
    def give(whole: Any) -> Any:
        whole[1, 2] = number
        return whole

    return give


BAD = [
    (with_number(math.nan), "not finite for 1 of 4 {kind}, the first {first}; .*float16 weights choose retrieval.enc"),
    (with_number(math.inf), "not finite for 1 of 4 {kind}"),
    (with_number(-math.inf), "not finite for 1 of 4 {kind}"),
    (lambda whole: whole.astype(np.float64) * 1e300, "not finite for 3 of 4"),
    (lambda whole: whole[:-1], r"shape \(3, 3\) for 4 {kind}; expected 4 vectors of 3 dim"),
    (lambda whole: whole[:, :2], r"shape \(4, 2\) for 4 {kind}; expected 4 vectors of 3 dimensions: check what"),
    (lambda whole: whole[0], r"shape \(3,\) for 4 {kind}"),
    (lambda whole: None, "for 4 {kind}"),
    (lambda whole: [["a"]], "the encoder fails on 4 {kind}: could not convert string"),
    (raising(IndexError("index out of range in self")), "fails on 4 {kind}: index out of range in self; check what"),
]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(("give", "says"), BAD, ids=lambda value: None)
def test_what_is_no_vector_is_refused_before_it_is_used(give: Any, says: str) -> None:
    texts = [passage.contents for passage in PASSAGES]
    told = says.format(kind="passages", first=re.escape(repr(texts[1])))
    with pytest.raises(UserError, match=told):
        list(encode_blocks(Giving(give), texts, 3))
    retriever = build_dense_retriever(PASSAGES, Giving(give, of=("query",)))
    told = says.format(kind="queries", first="'b'")
    with pytest.raises(RetrieverDownError, match=f"searching 4 queries failed: .*{told}"):
        retriever.search(["a", "b", "c", "d"], 2)
    with pytest.raises(RetrieverDownError, match=f"the retriever failed on query 'a' .*{told}.*sdsearch resume"):
        search_all(retriever, ["a", "b", "c", "d"], 2)


def test_vectors_are_given_on_as_they_are() -> None:
    vectors_ND = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    vectors_ND[1] = 0  # As the lexical encoder gives for a text of unknown words.
    given = encode_texts(Giving(lambda _: vectors_ND), ["a", "b", "c"], "query", 5)
    np.testing.assert_array_equal(given, vectors_ND)
    assert given.dtype == np.float32


def test_more_passages_than_there_are_is_all_of_them() -> None:
    (hits,) = build_dense_retriever(PASSAGES, Giving(lambda whole: whole + 1)).search(["q"], 10**12)
    assert sorted(hit.passage.id for hit in hits) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("num_bad", [1, 4])
def test_an_index_of_vectors_that_are_not_finite_is_no_empty_answer(num_bad: int) -> None:
    vectors_ND = np.ones((4, 3), dtype=np.float32)
    vectors_ND[:num_bad] = math.nan
    index = faiss.IndexFlatIP(3)
    index.add(vectors_ND)
    with pytest.raises(RetrieverDownError, match="the index holds vectors that are not finite: build it again"):
        DenseRetriever(Giving(lambda whole: whole), index, PASSAGES).search(["q"], 4)


class Drawn:
    """300 unit vectors of 12 dimensions."""

    num_vectors, num_dimensions = 300, 12
    _vectors_ND = np.random.default_rng(0).normal(size=(300, 12)).astype(np.float32)

    def blocks(self) -> Any:
        yield self._vectors_ND

    def rows(self, rows: Any) -> Any:
        return self._vectors_ND[rows]


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (IvfSqIndexSettings(num_lists=50, num_training_vectors=5), "num_training_vectors is 5, 50 lists .* need 50"),
        (IvfPqIndexSettings(num_lists=4, num_training_vectors=200), "is 200, 4 lists of kind 'ivf_pq' need 256 or"),
        (IvfPqIndexSettings(num_bytes=5), "num_bytes is 5, the vectors have 12 dimensions"),
        (IvfPqIndexSettings(num_bytes=24), "num_bytes is 24, the vectors have 12 dimensions"),
    ],
)
def test_an_index_that_faiss_would_refuse_is_refused(index: IndexSettings, says: str) -> None:
    with pytest.raises(UserError, match=f"retrieval.index.*{says}"):
        build_vector_index(index, Drawn())


def test_what_faiss_refuses_for_a_reason_of_its_own_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdsearch.retrieval.kinds.factory_name", lambda *_: "IVF4,PQ5")
    with pytest.raises(UserError, match=r"^retrieval.index of kind 'ivf_pq' cannot be made: .*; change its settings"):
        build_vector_index(IvfPqIndexSettings(), Drawn())


def save(folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def t5(vocab_size: int) -> T5Model:
    return T5Model(T5Config(vocab_size=vocab_size, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))


def roberta(vocab_size: int) -> RobertaModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return RobertaModel(RobertaConfig(vocab_size=vocab_size, max_position_embeddings=66, pad_token_id=1, **sizes))


def test_encoders_that_could_not_encode_are_refused_when_they_are_loaded(tmp_path: Path) -> None:
    model, tokenizer = make_bert_parts()
    path = save(tmp_path / "bert", model, tokenizer)
    with pytest.raises(UserError, match=r"max_length is 65, the model of '.*' reads at most 64 tokens; set it to that"):
        HFEncoder.from_pretrained(path, HFSettings(max_length=65))
    with pytest.raises(UserError, match=r"device 'zebra' cannot be used .*choose 'cpu'"):
        HFEncoder.from_pretrained(path, SHORT, device="zebra")
    with pytest.raises(UserError, match=r"the encoder fails on 1 queries: .*and its device"):
        HFEncoder.from_pretrained(path, SHORT, device="meta")
    size = model.config.vocab_size
    with pytest.raises(UserError, match=rf"knows {size} tokens, its model has vectors for {size - 1}"):
        HFEncoder.from_pretrained(save(tmp_path / "few", roberta(size - 1), tokenizer), SHORT)
    with pytest.raises(UserError, match=r"retrieval.encoder.path '.*': T5Model has a decoder; name a model that is an"):
        HFEncoder.from_pretrained(save(tmp_path / "t5", t5(size), tokenizer), SHORT)
    # The first place of RoBERTa's 66 is that behind the padding's: 64 tokens have one.
    long = save(tmp_path / "roberta", roberta(size), tokenizer)
    assert HFEncoder.from_pretrained(long, SHORT).num_dimensions == 16
    with pytest.raises(UserError, match="reads at most 64 tokens"):
        HFEncoder.from_pretrained(long, HFSettings(max_length=65))
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, unk_token="[UNK]")
    with pytest.raises(UserError, match=r"its tokenizer has no pad token; set pad_token"):
        HFEncoder.from_pretrained(save(tmp_path / "bare", model, bare), SHORT)


def test_weights_that_the_folder_lacks_are_not_drawn_anew(tmp_path: Path) -> None:
    model, tokenizer = make_bert_parts()
    path = save(tmp_path / "no pooler", model, tokenizer)
    # AutoModel makes the pooler that this folder has no weights of; the vectors do not need it.
    prints = [HFEncoder.from_pretrained(path, SHORT).fingerprint() for _ in range(2)]
    assert prints[0] == prints[1]
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layer.1.output" not in name}
    model.save_pretrained(tmp_path / "half", state_dict=weights)
    tokenizer.save_pretrained(tmp_path / "half")
    with pytest.raises(UserError, match=r"lacks 4 of the weights of BertModel, such as encoder.layer.1.output.Lay"):
        HFEncoder.from_pretrained(str(tmp_path / "half"), SHORT)


@pytest.mark.parametrize(("weight", "says"), [(math.nan, "vectors that are not finite"), (0.0, "zero vectors")])
def test_weights_that_give_no_direction_are_found_when_they_are_loaded(
    weight: float, says: str, tmp_path: Path
) -> None:
    model, tokenizer = make_bert_parts()
    with torch.no_grad():
        model.encoder.layer[1].output.LayerNorm.weight.fill_(weight)
        model.encoder.layer[1].output.LayerNorm.bias.fill_(weight)
    with pytest.raises(UserError, match=f"the encoder gives {says}.* for 1 of 1 queries"):
        HFEncoder.from_pretrained(save(tmp_path, model, tokenizer), SHORT)
