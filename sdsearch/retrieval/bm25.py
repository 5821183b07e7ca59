"""BM25 over an inverted index (Lucene's variant, by bm25s): every word counts as it is, nothing is folded.

Shape suffixes: `N` passages, `W` words of the vocabulary, `K` words of a text.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import bm25s
import numpy as np
from numpy.typing import NDArray

from schemas.base import hash_json
from schemas.errors import UserError
from schemas.records.passage import Passage, SearchHit
from sdsearch.retrieval.lexical import WORD_PATTERN, word_splitter, words_recipe

_VARIANT: Final = "lucene"


class BM25Retriever:
    """Queries to passages by BM25; the words are those of the lexical encoder, without stemming or stop words."""

    def __init__(self, index: bm25s.BM25, passages: Sequence[Passage]) -> None:
        """Search `index`, whose i-th text is that of `passages[i]`; raises ValueError when their numbers differ."""
        num_texts = index.scores["num_docs"]
        if num_texts != len(passages):
            raise ValueError(
                f"the index holds {num_texts} texts, the corpus {len(passages)} passages; build the index again"
            )
        self.index = index
        self.passages = passages
        self._split: Callable[[str], list[str]] = word_splitter()

    def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
        """Return for each query up to `top_k` hits, best first, equal scores in the corpus's order.

        A hit must score above zero: a query that shares no word with any passage finds nothing.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; ask for one passage or more")
        return [self._hits(query, top_k) for query in queries]

    def _hits(self, query: str, top_k: int) -> tuple[SearchHit, ...]:
        words = self.index.get_tokens_ids(self._split(query))
        if not words:
            return ()
        scores_N: NDArray[np.float32] = self.index.get_scores_from_ids(words)
        rows = _best_rows(scores_N, top_k)
        return tuple(SearchHit(passage=self.passages[row], score=float(scores_N[row])) for row in rows)


def build_bm25(texts: Callable[[], Iterable[str]], k1: float, b: float) -> bm25s.BM25:
    """Return a bm25s index over texts, in their order; UserError when they hold no word.

    `texts` gives them anew at each call. They are read twice, so that beside the index itself (8 bytes for each word of
    each text, counted once) only the words are in memory; bm25s's own `index` holds every text as a list.
    """
    split = word_splitter()
    numbers: dict[str, int] = {}
    num_with_word = array("q")
    num_texts = num_words = 0
    for text in texts():
        words = split(text)
        num_texts, num_words = num_texts + 1, num_words + len(words)
        for word in dict.fromkeys(words):
            number = numbers.setdefault(word, len(numbers))
            if number == len(num_with_word):
                num_with_word.append(0)
            num_with_word[number] += 1
    if not numbers:
        raise UserError("the corpus holds no word to search by; check the corpus file")
    counts_W = np.asarray(num_with_word, dtype=np.int64)
    mean_length = num_words / num_texts
    columns = _Columns(counts_W)
    idf_W = np.log1p((num_texts - counts_W + 0.5) / (counts_W + 0.5))
    for row, text in enumerate(texts()):
        counted = Counter(split(text))
        words_K = np.fromiter((numbers[word] for word in counted), np.int64, len(counted))
        tf_K = np.fromiter(counted.values(), np.float64, len(counted))
        saturation = k1 * (1 - b + b * counted.total() / mean_length)
        columns.add(row, words_K, idf_W[words_K] * tf_K / (tf_K + saturation))
    index = bm25s.BM25(k1=k1, b=b, method=_VARIANT)
    index.scores = {"data": columns.data, "indices": columns.rows, "indptr": columns.starts, "num_docs": num_texts}
    index.vocab_dict, index.unique_token_ids_set = numbers, set(numbers.values())
    index.nonoccurrence_array = None
    return index


class _Columns:
    """The scores of each word's texts, word by word, filled text by text."""

    def __init__(self, counts_W: NDArray[np.int64]) -> None:
        self.starts = np.concatenate([[0], np.cumsum(counts_W)])
        self.rows = np.empty(self.starts[-1], dtype=np.int32)
        self.data = np.empty(self.starts[-1], dtype=np.float32)
        self._next_W = self.starts[:-1].copy()

    def add(self, row: int, words_K: NDArray[np.int64], scores_K: NDArray[np.float64]) -> None:
        places_K = self._next_W[words_K]
        self.rows[places_K], self.data[places_K] = row, scores_K
        self._next_W[words_K] += 1


def bm25_recipe_hash(k1: float, b: float, *, unspaced: bool = False) -> str:
    """Return the sha256 (hex) of what, with a corpus, decides the index; `unspaced` as of `lexical.recipe_hash`."""
    recipe = {"kind": "bm25", "variant": _VARIANT, "words": WORD_PATTERN, "k1": k1, "b": b}
    return hash_json(recipe | words_recipe(unspaced))


def _best_rows(scores_N: NDArray[np.float32], top_k: int) -> list[int]:
    num_wanted = min(top_k, len(scores_N))
    least = np.partition(scores_N, -num_wanted)[-num_wanted]
    rows = np.flatnonzero((scores_N >= least) & (scores_N > 0))
    order = np.argsort(-scores_N[rows], kind="stable")[:num_wanted]
    return [int(row) for row in rows[order]]
