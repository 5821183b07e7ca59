"""Scripts without blanks between words: found by pairs of characters; every other text is split as it was before."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from flows.app import run_command
from flows.retrieval.bm25 import BM25Source
from flows.retrieval.source import IndexSource
from schemas.records.passage import Passage
from schemas.settings.retrieval import BM25RetrievalSettings, DenseRetrievalSettings
from sdsearch.retrieval.bm25 import BM25Retriever, bm25_recipe_hash, build_bm25
from sdsearch.retrieval.dense import build_dense_retriever
from sdsearch.retrieval.lexical import WORD_PATTERN, LexicalEncoder, LexicalSettings, recipe_hash, word_splitter
from sdsearch.retrieval.ports import Retriever
from sdsearch.unspaced import has_unspaced
from storage.workspace import Workspace

TEXTS = {
    "river": "中国最长的河流是长江，全长6300公里。",
    "tower": "東京タワーは1958年に建てられた。",
    "capital": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย",
    "phone": "iPhone手机 is a phone",
    "lima": "Lima is the capital of Peru.",
}
QUERIES = {"长江在哪里": "river", "最长的河流": "river", "東京": "tower", "ﾀﾜｰ": "tower", "เมืองหลวง": "capital"}
QUERIES |= {"手机": "phone", "iphone": "phone", "Peru": "lima"}


def bm25(texts: Sequence[str], passages: Sequence[Passage]) -> Retriever:
    return BM25Retriever(build_bm25(lambda: texts, 0.9, 0.4), passages)


def lexical(texts: Sequence[str], passages: Sequence[Passage]) -> Retriever:
    return build_dense_retriever(passages, LexicalEncoder.fit(texts))


@pytest.mark.parametrize("build", [bm25, lexical])
def test_words_inside_a_run_of_characters_are_found(
    build: Callable[[Sequence[str], Sequence[Passage]], Retriever],
) -> None:
    passages = [Passage(id=name, title="", text=text) for name, text in TEXTS.items()]
    retriever = build([passage.contents for passage in passages], passages)
    found = {query: hits[0].passage.id for query, hits in zip(QUERIES, retriever.search(list(QUERIES), 1), strict=True)}
    assert found == QUERIES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("中国", ["中国"]),
        ("长江大桥", ["长江", "江大", "大桥"]),
        ("江", ["江"]),
        ("iPhone手机2", ["iphone", "手机", "2"]),
        ("한국 서울", 2),
        ("Crème Brûlée", ["creme", "brulee"]),
    ],
)
def test_how_words_are_split(text: str, words: list[str] | int) -> None:
    split = word_splitter()(text)
    assert (split if isinstance(words, list) else len(split)) == words


@given(st.text().filter(lambda text: not has_unspaced(text)))
def test_other_texts_are_split_as_before(text: str) -> None:
    before = CountVectorizer(lowercase=True, strip_accents="unicode", token_pattern=WORD_PATTERN).build_analyzer()
    assert word_splitter()(text) == before(text)


def test_recipes_of_other_corpora_are_as_before_and_indexes_of_these_are_built_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe_hash(LexicalSettings()) == "ccf771f564134a20d46adef9f47550db7e61aafe1f88a9adc617d6c88e29236a"
    assert bm25_recipe_hash(0.9, 0.4) == "9f2b41d394c052d6f15ecccd48c711d0148c9e6a61ca3c238f73d8e8e209266b"
    hashes = {}
    for name in ("lima", "river"):
        workspace = tmp_path / name
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps({"id": "1", "contents": f'"{name}"\n{TEXTS[name]}'}), encoding="utf-8")
        assert run_command(["corpus", "import", str(file), "--workspace", str(workspace)]) == 0
        assert ("pairs of characters" in capsys.readouterr().out) == (name == "river")
        for stored in (True, False):  # Corpora that were imported before it was looked for have no such entry.
            if not stored:
                (manifest,) = (workspace / "corpora").glob("*/manifest.json")
                content = json.loads(manifest.read_text(encoding="utf-8"))
                del content["has_unspaced"]
                manifest.write_text(json.dumps(content), encoding="utf-8")
            dense = IndexSource(DenseRetrievalSettings(corpus=name), Workspace(workspace)).encoder_hash
            words = BM25Source(BM25RetrievalSettings(corpus=name), Workspace(workspace)).fingerprint
            hashes[name, stored] = (dense, words)
    assert hashes["lima", True] == hashes["lima", False]
    assert hashes["river", True] == hashes["river", False]
    assert hashes["lima", True][0] == recipe_hash(LexicalSettings())
    assert hashes["river", True][0] == recipe_hash(LexicalSettings(), unspaced=True) != recipe_hash(LexicalSettings())
