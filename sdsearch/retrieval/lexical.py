"""BM25 as vectors: words weighted by rarity, folded to a fixed width, so that a vector index ranks as BM25 does.

Shape suffixes: `N` texts, `W` words of the vocabulary, `D` vector width.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize

from schemas.base import hash_json
from schemas.errors import UserError
from sdsearch.retrieval.ports import TextKind
from sdsearch.unspaced import split_unspaced

# Words of one letter count: a chemical symbol may be all that a query has to go by.
WORD_PATTERN: Final = r"(?u)[^\W_]+"
_BATCH: Final = 4096


class LexicalSettings(NamedTuple):
    """What a lexical encoder is fitted with; k1 and b are Anserini's defaults, not tuned on any question."""

    num_dimensions: int | None = 2048
    k1: float = 0.9
    b: float = 0.4
    dimensions_per_word: int = 2
    seed: int = 0


class _Fitted(NamedTuple):
    """What fitting learns from the passages."""

    words: list[str]
    idf_W: NDArray[np.float64]
    mean_length: float
    max_norm: float
    folding_WD: sp.csr_matrix | None


class LexicalEncoder:
    """Texts to unit vectors whose inner product is proportional to the BM25 score of query and passage.

    A passage's word weighs `tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length)) * sqrt(idf)`, a query's
    `tf * sqrt(idf)`. A sparse sign projection (Kane and Nelson, JACM 2014) folds the words into
    `num_dimensions - 1` coordinates (None: one a word). Passages are divided by the largest norm, and a last
    coordinate, zero for queries, fills them up to unit length: inner products, and so BM25's ranking, stay as
    they were (Bachrach et al., RecSys 2014).
    """

    def __init__(self, settings: LexicalSettings, fitted: _Fitted) -> None:
        self.settings = settings
        self._fitted = fitted
        self._counter = _counter(fitted.words)

    @classmethod
    def fit(cls, texts: Sequence[str], settings: LexicalSettings | None = None) -> LexicalEncoder:
        """Learn words, rarities and lengths from the passages' texts; the same texts give the same encoder."""
        return cls.fit_stream(lambda: texts, settings)

    @classmethod
    def fit_stream(
        cls, read_texts: Callable[[], Iterable[str]], settings: LexicalSettings | None = None
    ) -> LexicalEncoder:
        """As `fit`, reading the texts twice and keeping none: memory is that of the words."""
        settings = settings or LexicalSettings()
        _check(settings)
        seen = _count(read_texts())
        words = sorted(seen.num_texts_with)
        num_with_word_W = np.array([seen.num_texts_with[word] for word in words])
        fitted = _Fitted(
            words=words,
            idf_W=np.log1p((seen.num_texts - num_with_word_W + 0.5) / (num_with_word_W + 0.5)),
            mean_length=float(seen.num_words / seen.num_texts),
            max_norm=1.0,
            folding_WD=_folding(len(words), settings),
        )
        unscaled = cls(settings, fitted)
        norms = (unscaled._passage_norms(unscaled._counter.transform(batch)).max() for batch in _batches(read_texts()))
        return cls(settings, fitted._replace(max_norm=float(max(norms))))

    @property
    def num_dimensions(self) -> int:
        """D, the last coordinate included."""
        folding_WD = self._fitted.folding_WD
        return 1 + (len(self._fitted.words) if folding_WD is None else folding_WD.shape[1])

    def encode(self, texts: Sequence[str], kind: TextKind) -> NDArray[np.float32]:
        """Return (N, D) vectors; a text without a known word is the zero vector."""
        vectors_ND = np.zeros((len(texts), self.num_dimensions), dtype=np.float32)
        for start in range(0, len(texts), _BATCH):
            counts_NW = self._counter.transform(texts[start : start + _BATCH])
            make = self._query_vectors if kind == "query" else self._passage_vectors
            vectors_ND[start : start + _BATCH] = make(counts_NW)
        return vectors_ND

    def _query_vectors(self, counts_NW: sp.csr_matrix) -> NDArray[np.float64]:
        folded_ND = normalize(self._fold(counts_NW.astype(np.float64))).toarray()
        return np.pad(folded_ND, ((0, 0), (0, 1)))

    def _passage_vectors(self, counts_NW: sp.csr_matrix) -> NDArray[np.float64]:
        folded_ND = self._fold(self._saturate(counts_NW)).toarray() / self._fitted.max_norm
        norms_N = np.linalg.norm(folded_ND, axis=1)
        folded_ND /= np.maximum(norms_N, 1.0)[:, None]  # a text that was not fitted may be longer than any that was
        rest_N = np.where(norms_N > 0, np.sqrt(np.maximum(0.0, 1.0 - norms_N**2)), 0.0)
        return np.hstack([folded_ND, rest_N[:, None]])

    def _passage_norms(self, counts_NW: sp.csr_matrix) -> NDArray[np.float64]:
        folded_ND = self._fold(self._saturate(counts_NW))
        squares_N: NDArray[np.float64] = np.asarray(folded_ND.multiply(folded_ND).sum(axis=1)).ravel()
        return np.sqrt(squares_N)

    def _saturate(self, counts_NW: sp.csr_matrix) -> sp.csr_matrix:
        k1, b = self.settings.k1, self.settings.b
        weights_NW = sp.csr_matrix(counts_NW, dtype=np.float64, copy=True)
        lengths_N = np.asarray(weights_NW.sum(axis=1)).ravel()
        rows = np.repeat(np.arange(weights_NW.shape[0]), np.diff(weights_NW.indptr))
        counts = weights_NW.data
        relative_length = lengths_N[rows] / self._fitted.mean_length
        weights_NW.data = counts * (k1 + 1) / (counts + k1 * (1 - b + b * relative_length))
        return weights_NW

    def _fold(self, weights_NW: sp.csr_matrix) -> sp.csr_matrix:
        weighted_NW = weights_NW @ sp.diags(np.sqrt(self._fitted.idf_W))
        return weighted_NW if self._fitted.folding_WD is None else weighted_NW @ self._fitted.folding_WD

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of kind, settings and fitted state: equal prints mean equal vectors."""
        description, arrays = self.state()
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
        for name in sorted(arrays):
            digest.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode())
            digest.update(np.ascontiguousarray(arrays[name]).tobytes())
        return digest.hexdigest()

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return the encoder as (JSON value, named arrays), for `from_state`."""
        fitted = self._fitted
        description = {
            "kind": "lexical",
            "settings": self.settings._asdict(),
            "mean_length": fitted.mean_length,
            "max_norm": fitted.max_norm,
            "words": fitted.words,
        }
        arrays: dict[str, NDArray[Any]] = {"idf": fitted.idf_W}
        if fitted.folding_WD is not None:
            folding = fitted.folding_WD
            arrays |= {"folding_data": folding.data, "folding_indices": folding.indices.astype(np.int32)}
            arrays |= {"folding_indptr": folding.indptr.astype(np.int32)}
        return description, arrays

    @classmethod
    def from_state(cls, description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> LexicalEncoder:
        """Return the encoder that `state` described."""
        settings = LexicalSettings(**description["settings"])
        words = list(description["words"])
        folding_WD = None
        if settings.num_dimensions is not None:
            parts = (arrays["folding_data"], arrays["folding_indices"], arrays["folding_indptr"])
            folding_WD = sp.csr_matrix(parts, shape=(len(words), settings.num_dimensions - 1))
        fitted = _Fitted(words, arrays["idf"], description["mean_length"], description["max_norm"], folding_WD)
        return cls(settings, fitted)


def recipe_hash(settings: LexicalSettings, *, unspaced: bool = False) -> str:
    """Return the sha256 (hex) of what, with a corpus, decides an encoder: known before anything is fitted.

    unspaced: whether the corpus has text in scripts without blanks, whose words are counted otherwise than others'.
    """
    return hash_json({"kind": "lexical", **settings._asdict()} | words_recipe(unspaced))


def words_recipe(unspaced: bool) -> dict[str, str]:
    """Return what is said of the splitting of words, beside WORD_PATTERN: nothing where there is nothing to split."""
    return {"unspaced": "pairs"} if unspaced else {}


def word_splitter() -> Callable[[str], list[str]]:
    """Return what splits a text into the words that are searched by: lower case, without accents.

    Scripts that are written without blanks give pairs of characters.
    """
    plain: Callable[[str], list[str]] = CountVectorizer(
        lowercase=True, strip_accents="unicode", token_pattern=WORD_PATTERN
    ).build_analyzer()
    return lambda text: plain(text) if text.isascii() else split_unspaced(plain(text))


class _Count(NamedTuple):
    """What a first reading of the texts counts."""

    num_texts: int
    num_words: int
    num_texts_with: Counter[str]


def _count(texts: Iterable[str]) -> _Count:
    analyse = word_splitter()
    num_texts = num_words = 0
    num_texts_with: Counter[str] = Counter()
    for text in texts:
        words = analyse(text)
        num_texts += 1
        num_words += len(words)
        num_texts_with.update(set(words))
    if not num_words:
        raise UserError(f"the corpus's {num_texts} passages hold no word to search by; check the corpus file")
    return _Count(num_texts, num_words, num_texts_with)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while batch := list(islice(remaining, _BATCH)):
        yield batch


def _counter(words: list[str]) -> CountVectorizer:
    return CountVectorizer(analyzer=word_splitter(), vocabulary=words)


def _folding(num_words: int, settings: LexicalSettings) -> sp.csr_matrix | None:
    if settings.num_dimensions is None:
        return None
    # One dimension in each of a few blocks a word: drawn freely, words would differ in length, which costs hit@3.
    num_blocks = settings.dimensions_per_word
    block_width = (settings.num_dimensions - 1) // num_blocks
    random = np.random.default_rng(settings.seed)
    columns = random.integers(block_width, size=(num_words, num_blocks)) + block_width * np.arange(num_blocks)
    signs = random.choice([-1.0, 1.0], size=(num_words, num_blocks)) / np.sqrt(num_blocks)
    starts = num_blocks * np.arange(num_words + 1)
    return sp.csr_matrix((signs.ravel(), columns.ravel(), starts), shape=(num_words, settings.num_dimensions - 1))


def _check(settings: LexicalSettings) -> None:
    if settings.k1 < 0 or not 0 <= settings.b <= 1 or settings.dimensions_per_word < 1:
        raise UserError(
            f"lexical encoder: k1={settings.k1}, b={settings.b}, dimensions_per_word={settings.dimensions_per_word}; "
            "expected k1 >= 0, 0 <= b <= 1 and at least one dimension a word"
        )
    if settings.num_dimensions is not None and settings.num_dimensions <= settings.dimensions_per_word:
        raise UserError(
            f"lexical encoder: num_dimensions is {settings.num_dimensions}, expected more than dimensions_per_word "
            f"({settings.dimensions_per_word}), or None for one dimension a word"
        )
