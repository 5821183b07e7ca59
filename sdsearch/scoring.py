"""Exact match, F1 and reward, as SQuAD normalises and AutoRefine scores."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from schemas.passage import Passage

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})


def normalise_answer(text: str) -> str:
    """Lower-case, strip punctuation, drop a/an/the, squeeze blanks (SQuAD)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str | None, golden_answers: Sequence[str]) -> float:
    """Return 1.0 when the normalised answer equals a golden one, else 0.0; no answer scores 0."""
    if answer is None:
        return 0.0
    return float(normalise_answer(answer) in {normalise_answer(golden) for golden in golden_answers})


def f1_score(answer: str | None, golden_answers: Sequence[str]) -> float:
    """Return the best token F1 over the golden answers, in [0, 1]; no answer scores 0."""
    return 0.0 if answer is None else max(_f1(answer, golden) for golden in golden_answers)


def _f1(answer: str, golden: str) -> float:
    ours, theirs = normalise_answer(answer), normalise_answer(golden)
    if ours != theirs and (ours in _CLOSED_ANSWERS or theirs in _CLOSED_ANSWERS):
        return 0.0
    num_common = sum((Counter(ours.split()) & Counter(theirs.split())).values())
    if num_common == 0:
        return 0.0
    precision, recall = num_common / len(ours.split()), num_common / len(theirs.split())
    return 2 * precision * recall / (precision + recall)


def contains_answer(passage: Passage, golden_answers: Sequence[str]) -> bool:
    """True when the passage's normalised words hold a golden answer's, whole words only."""
    words = f" {normalise_answer(passage.contents)} "
    golden = [normalise_answer(answer) for answer in golden_answers]
    return any(answer and f" {answer} " in words for answer in golden)
