from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from schemas.records.passage import Passage
from sdsearch.retrieval.dense import DenseRetriever, build_dense_retriever, build_index
from sdsearch.retrieval.hf import HFEncoder, HFSettings
from sdsearch.retrieval.lexical import LexicalEncoder, LexicalSettings, recipe_hash
from sdsearch.retrieval.ports import RetrieverDownError, TextKind

TEXTS = [
    "Lima is the capital of Peru. Lima lies by the sea.",
    "Peru is a state of South America, between Ecuador and Chile.",
    "Quito is the capital of Ecuador.",
    "The chemical symbol of nitrogen is N.",
    "The anthem of Peru is the Himno Nacional, and it is played on the days of state.",
    "Sal is an island of Cabo Verde.",
]
QUERIES = ["capital of Peru", "Peru", "symbol N", "the state of the sea", "anthem of Ecuador Ecuador"]


def make_passages(texts: Sequence[str] = TEXTS) -> list[Passage]:
    return [Passage(id=f"p{number}", title=text.split()[0], text=text) for number, text in enumerate(texts)]


def bm25(query: str, texts: Sequence[str], k1: float, b: float) -> list[float]:
    """Score each text by the formula of Robertson and Zaragoza, one word at a time."""
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    mean_length = sum(map(len, words)) / len(words)
    scores = [0.0] * len(texts)
    for term, times in Counter(re.findall(r"\w+", query.lower())).items():
        num_with_term = sum(term in text for text in words)
        idf = math.log(1 + (len(texts) - num_with_term + 0.5) / (num_with_term + 0.5))
        for number, text in enumerate(words):
            count = text.count(term)
            scores[number] += times * idf * count * (k1 + 1) / (count + k1 * (1 - b + b * len(text) / mean_length))
    return scores


class TableEncoder:
    """Gives texts the vectors of a table and counts the calls."""

    def __init__(self, table: dict[str, list[float]]) -> None:
        self.table = table
        self.calls: list[tuple[list[str], TextKind]] = []

    def encode(self, texts: Sequence[str], kind: TextKind) -> NDArray[np.float32]:
        self.calls.append((list(texts), kind))
        return np.array([self.table[text] for text in texts], dtype=np.float32)


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.0), (0.1, 0.7), (2.0, 1.0)])
def test_inner_products_are_bm25_scores_up_to_one_factor_a_query(k1: float, b: float) -> None:
    encoder = LexicalEncoder.fit(TEXTS, LexicalSettings(num_dimensions=None, k1=k1, b=b))
    products = encoder.encode(QUERIES, "query") @ encoder.encode(TEXTS, "passage").T
    for query, ours in zip(QUERIES, products, strict=True):
        expected = np.array(bm25(query, TEXTS, k1, b))
        np.testing.assert_allclose(ours / ours.max(), expected / expected.max(), atol=1e-6)


@pytest.mark.parametrize("num_dimensions", [None, 64, 4096])
def test_lexical_vectors_have_unit_length_or_are_zero(num_dimensions: int | None) -> None:
    encoder = LexicalEncoder.fit(TEXTS, LexicalSettings(num_dimensions=num_dimensions))
    texts = [*TEXTS, "Lima " * 50, "unheard"]
    for kind in ("query", "passage"):
        vectors = encoder.encode(texts, kind)
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(texts), encoder.num_dimensions)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [*[1.0] * (len(texts) - 1), 0.0], atol=1e-6)
    assert num_dimensions in (None, encoder.num_dimensions)


def test_folding_keeps_inner_products_about_as_they_are() -> None:
    whole = LexicalEncoder.fit(TEXTS, LexicalSettings(num_dimensions=None))
    folded = LexicalEncoder.fit(TEXTS, LexicalSettings(num_dimensions=2048))
    exact, near = (e.encode(QUERIES, "query") @ e.encode(TEXTS, "passage").T for e in (whole, folded))
    np.testing.assert_allclose(near, exact, atol=0.05)
    assert np.abs(near - exact).max() > 0, "47 words in 2047 coordinates, two each, do collide"


def test_texts_without_a_common_word_score_zero_on_average() -> None:
    texts = [" ".join(f"w{number}x{place}" for place in range(10)) for number in range(60)]
    encoder = LexicalEncoder.fit(texts, LexicalSettings(num_dimensions=65))
    products = encoder.encode(texts, "query") @ encoder.encode(texts, "passage").T
    unrelated = products[~np.eye(len(texts), dtype=bool)]
    assert abs(unrelated.mean()) < 0.02
    assert unrelated.std() > 0.02, "64 coordinates do not keep 600 words apart"
    assert (products.argmax(axis=1) == np.arange(len(texts))).all()


def test_words_are_read_without_case_and_accents_and_down_to_one_letter() -> None:
    retriever = build_dense_retriever(make_passages(), LexicalEncoder.fit(TEXTS))
    found = retriever.search(["n", "LÍMA", "Cabo  Verde!"], 1)
    assert [hits[0].passage.id for hits in found] == ["p3", "p0", "p5"]


def test_a_lexical_encoder_comes_back_from_its_state() -> None:
    for settings in (LexicalSettings(), LexicalSettings(num_dimensions=None, k1=1.2)):
        encoder = LexicalEncoder.fit(TEXTS, settings)
        again = LexicalEncoder.from_state(*encoder.state())
        assert again.fingerprint() == encoder.fingerprint()
        np.testing.assert_array_equal(again.encode(QUERIES, "query"), encoder.encode(QUERIES, "query"))
        np.testing.assert_array_equal(again.encode(TEXTS, "passage"), encoder.encode(TEXTS, "passage"))
        assert all(not array.dtype.hasobject for array in encoder.state()[1].values())


def test_fingerprints_tell_corpora_and_settings_apart() -> None:
    encoders = [
        LexicalEncoder.fit(TEXTS),
        LexicalEncoder.fit(TEXTS[:-1]),
        LexicalEncoder.fit(TEXTS, LexicalSettings(seed=1)),
        LexicalEncoder.fit(TEXTS, LexicalSettings(b=0.5)),
        LexicalEncoder.fit(TEXTS, LexicalSettings(num_dimensions=None)),
    ]
    assert len({encoder.fingerprint() for encoder in encoders}) == len(encoders)
    assert LexicalEncoder.fit(TEXTS).fingerprint() == encoders[0].fingerprint()
    assert len({recipe_hash(encoder.settings) for encoder in encoders}) == len(encoders) - 1


@pytest.mark.parametrize(
    "settings",
    [
        LexicalSettings(num_dimensions=2),
        LexicalSettings(k1=-1),
        LexicalSettings(b=1.1),
        LexicalSettings(dimensions_per_word=0),
    ],
)
def test_impossible_lexical_settings_are_refused(settings: LexicalSettings) -> None:
    with pytest.raises(ValueError, match=r"lexical encoder: .*expected"):
        LexicalEncoder.fit(TEXTS, settings)


def test_a_corpus_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="the corpus's 2 passages hold no word"):
        LexicalEncoder.fit(["...", "?!"])


def test_search_ranks_by_inner_product_and_drops_what_does_not_score() -> None:
    passages = make_passages(["a", "b", "c", "d"])
    vectors = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]]
    table = {passage.contents: vector for passage, vector in zip(passages, vectors, strict=True)}
    encoder = TableEncoder(table | {"east": [1.0, 0.0], "north": [0.0, 1.0], "nothing": [0.0, 0.0]})
    retriever = build_dense_retriever(passages, encoder)
    encoder.calls.clear()
    east, nothing, north = retriever.search(["east", "nothing", "north"], 10)
    assert encoder.calls == [(["east", "nothing", "north"], "query")], "one batched encode a call"
    assert [(hit.passage.id, round(hit.score, 6)) for hit in east] == [("p0", 1.0), ("p1", 0.8)]
    assert [hit.passage.id for hit in north] == ["p2", "p1"]
    assert nothing == ()
    assert [hit.passage.id for hit in retriever.search(["north"], 1)[0]] == ["p2"]
    assert retriever.search([], 3) == []


def test_what_an_index_fills_up_with_is_no_passage() -> None:
    class Filling:
        """An approximate index that finds one passage and fills up with FAISS's -1, whatever the score says."""

        ntotal, d = 2, 1

        def search(self, vectors_ND: NDArray[np.float32], top_k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            return np.full((1, top_k), 0.5, np.float32), np.array([[0, *[-1] * (top_k - 1)]])

    passages = make_passages(["a", "b"])
    ((hit,),) = DenseRetriever(TableEncoder({"q": [1.0]}), Filling(), passages).search(["q"], 3)
    assert hit.passage == passages[0]


class BrokenEncoder:
    """Fails, or returns what is no vector, on queries alone."""

    def __init__(self, vector: list[float] | None) -> None:
        self.vector = vector

    def encode(self, texts: Sequence[str], kind: TextKind) -> NDArray[np.float32]:
        if kind == "passage":
            return np.ones((len(texts), 2), dtype=np.float32)
        if self.vector is None:
            raise RuntimeError("CUDA out of memory")
        return np.array([self.vector] * len(texts), dtype=np.float32)


@pytest.mark.parametrize(("vector", "reason"), [(None, "out of memory"), ([math.nan, 1.0], "not finite")])
def test_a_failing_search_is_an_error_and_no_empty_result(vector: list[float] | None, reason: str) -> None:
    retriever = build_dense_retriever(make_passages(), BrokenEncoder(vector))
    with pytest.raises(RetrieverDownError, match=rf"searching 2 queries failed: .*{reason}"):
        retriever.search(["x", "y"], 3)


def test_retrievers_that_cannot_work_are_refused() -> None:
    encoder = LexicalEncoder.fit(TEXTS)
    with pytest.raises(ValueError, match="the corpus is empty"):
        build_index([], encoder)
    index = build_index(make_passages(), encoder)
    with pytest.raises(ValueError, match="the index holds 6 vectors, the corpus 5 passages"):
        DenseRetriever(encoder, index, make_passages(TEXTS[:-1]))
    with pytest.raises(ValueError, match="top_k is 0"):
        DenseRetriever(encoder, index, make_passages()).search(["Lima"], 0)


def test_the_index_is_exact_and_in_the_order_of_the_passages() -> None:
    encoder = LexicalEncoder.fit(TEXTS)
    index = build_index(make_passages(), encoder)
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    expected = encoder.encode([passage.contents for passage in make_passages()], "passage")
    np.testing.assert_array_equal(index.reconstruct_n(0, len(TEXTS)), expected)


def make_bert_parts(seed: int = 0) -> tuple[BertModel, PreTrainedTokenizerFast]:
    """A two-layer BERT with random weights and a tokenizer of whole words."""
    words = sorted(set(re.findall(r"\w+|[^\w\s]", " ".join([*TEXTS, "query: passage: ?"]).lower())))
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False), tokenizer


def embed_alone(
    model: BertModel, tokenizer: PreTrainedTokenizerFast, text: str, max_length: int
) -> NDArray[np.float32]:
    """One text without padding: the plain mean of its states at unit length."""
    ids = tokenizer.encode(text, truncation=True, max_length=max_length)
    with torch.no_grad():
        states = model.eval()(torch.tensor([ids])).last_hidden_state[0]
    mean = states.mean(dim=0)
    return (mean / mean.norm()).numpy()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("max_length", [8, 64])
def test_hf_vectors_are_those_of_each_text_alone(batch_size: int, max_length: int) -> None:
    model, tokenizer = make_bert_parts()
    encoder = HFEncoder(model, tokenizer, HFSettings(batch_size=batch_size, max_length=max_length))
    for kind, prefix in (("query", "query: "), ("passage", "passage: ")):
        vectors = encoder.encode(TEXTS, kind)
        expected = [embed_alone(model, tokenizer, prefix + text, max_length) for text in TEXTS]
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
        assert vectors.dtype == np.float32
    assert encoder.encode([], "query").shape == (0, 16)


def test_hf_fingerprints_follow_what_decides_the_vectors() -> None:
    model, tokenizer = make_bert_parts()
    fingerprint = HFEncoder(model, tokenizer).fingerprint()
    assert HFEncoder(*make_bert_parts(), HFSettings(batch_size=2)).fingerprint() == fingerprint
    others = [
        HFEncoder(*make_bert_parts(seed=1)),
        HFEncoder(model, tokenizer, HFSettings(query_prefix="")),
        HFEncoder(model, tokenizer, HFSettings(max_length=8)),
        HFEncoder(make_bert_parts()[0].to(torch.bfloat16), tokenizer),
    ]
    assert len({fingerprint, *(other.fingerprint() for other in others)}) == 5


def test_hf_encoders_load_from_a_folder(tmp_path: Path) -> None:
    model, tokenizer = make_bert_parts()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = HFSettings(max_length=64)
    loaded = HFEncoder.from_pretrained(str(tmp_path), settings)
    np.testing.assert_allclose(
        loaded.encode(TEXTS, "query"), HFEncoder(model, tokenizer, settings).encode(TEXTS, "query"), atol=1e-6
    )
    half = HFEncoder.from_pretrained(str(tmp_path), settings, dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    np.testing.assert_allclose(np.linalg.norm(half.encode(TEXTS, "query"), axis=1), 1.0, atol=1e-5)


def test_hf_encoders_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer could be read .*point retrieval\.encoder\.path at a folder"):
        HFEncoder.from_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="dtype 'float7' is unknown; choose float32"):
        HFEncoder.from_pretrained(str(tmp_path), dtype="float7")
