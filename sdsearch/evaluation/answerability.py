"""Which questions have a golden answer in a passage: of a whole corpus, or of what the question itself finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from schemas.records.question import Question
from sdsearch.credit.scoring import contains_answer, normalise_answer, whole_words
from sdsearch.retrieval.ports import Retriever, search_all

_QUERIES: Final = 256


class GoldenAnswers:
    """The golden answers of many questions, looked for in a text all at once.

    Finds what `contains_answer` finds, in a time that hardly grows with their number: an answer of whole words is
    looked up by its first word; one in a script without blanks between words may stand anywhere and is searched for.
    """

    def __init__(self, answers: Iterable[str]) -> None:
        self._lengths: dict[str, set[int]] = {}
        self._words = set[str]()
        self._anywhere: list[tuple[str, str]] = []
        for answer in {normalise_answer(answer) for answer in answers} - {""}:
            wanted = whole_words(answer)
            if wanted == f" {answer} ":
                words = answer.split()
                self._words.add(answer)
                self._lengths.setdefault(words[0], set()).add(len(words))
            else:
                self._anywhere.append((answer, wanted))

    def in_text(self, text: str) -> set[str]:
        """Return the normalised golden answers that a passage's title and text contain."""
        normalised = normalise_answer(text)
        words = normalised.split()
        candidates = (
            " ".join(words[place : place + length])
            for place, word in enumerate(words)
            for length in self._lengths.get(word, ())
        )
        found = self._words.intersection(candidates)
        return found.union(answer for answer, wanted in self._anywhere if wanted in f" {normalised} ")


def in_any_passage(
    questions: Sequence[Question], contents: Iterable[str], read: Callable[[int], None] = lambda number: None
) -> list[bool]:
    """Return for each question whether one of a corpus's passages contains a golden answer.

    contents: title and text of each passage, read once. read: told now and then how many passages were read.
    """
    wanted = GoldenAnswers(answer for question in questions for answer in question.golden_answers)
    found = set[str]()
    for number, text in enumerate(contents, 1):
        found |= wanted.in_text(text)
        if number % 1000 == 0:
            read(number)
    return [any(normalise_answer(answer) in found for answer in question.golden_answers) for question in questions]


def in_top_passages(questions: Sequence[Question], retriever: Retriever, top_k: int) -> Iterator[bool]:
    """Yield for each question whether one of the `top_k` passages that its own text finds contains a golden answer.

    RetrieverDownError where the retriever cannot answer.
    """
    for start in range(0, len(questions), _QUERIES):
        batch = questions[start : start + _QUERIES]
        hits = search_all(retriever, [question.question for question in batch], top_k)
        for question, of_question in zip(batch, hits, strict=True):
            yield any(contains_answer(hit.passage, question.golden_answers) for hit in of_question)
