"""Golden answers looked for in a whole corpus at once: the same as one passage and one question at a time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records.passage import Passage, SearchHit
from schemas.records.question import Question
from sdsearch.credit.scoring import contains_answer
from sdsearch.evaluation.answerability import in_any_passage, in_top_passages
from sdsearch.retrieval.ports import RetrieverDownError

WORDS = st.sampled_from(["the", "New", "York", "york,", "city", "of", "?", "235", "35", "长江", "河", "长江3"])
TEXTS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)


def question(number: int, *golden: str) -> Question:
    return Question(
        id=str(number), dataset="toy", split="dev", question=f"q{number}?", golden_answers=golden, category=""
    )


@given(texts=st.lists(TEXTS, max_size=4), golden=st.lists(st.lists(TEXTS, min_size=1, max_size=2), max_size=4))
def test_all_at_once_is_one_by_one(texts: list[str], golden: list[list[str]]) -> None:
    passages = [Passage(id=str(n), title="A title", text=text) for n, text in enumerate(texts)]
    questions = [question(n, *answers) for n, answers in enumerate(golden)]
    one_by_one = [any(contains_answer(passage, q.golden_answers) for passage in passages) for q in questions]
    assert in_any_passage(questions, (passage.contents for passage in passages)) == one_by_one


def test_what_is_found_and_what_is_not() -> None:
    questions = [question(0, "New York City"), question(1, "York city hall", "235"), question(2, "the", "ew York")]
    contents = ["Cities\nnew york, CITY of", "Codes\nIt is +235."]
    assert in_any_passage(questions, contents) == [True, True, False]
    assert in_any_passage(questions, contents[:1]) == [True, False, False]


def test_the_question_itself_is_searched_for_and_k_counts() -> None:
    class Ranked:
        """Finds Lima third for each question."""

        def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
            assert all(query.startswith("q") for query in queries)
            hits = [SearchHit(passage=Passage(id=t, title=t, text=t), score=1.0) for t in ("Rome", "Oslo", "Lima")]
            return [tuple(hits[:top_k]) for _ in queries]

    questions = [question(n, "Lima" if n % 2 else "Oslo") for n in range(600)]
    assert list(in_top_passages(questions, Ranked(), 3)) == [True] * 600
    assert list(in_top_passages(questions, Ranked(), 2)) == [True, False] * 300


def test_a_retriever_that_is_down_is_no_miss() -> None:
    class Down:
        def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
            raise OSError("refused")

    with pytest.raises(RetrieverDownError, match="refused"):
        list(in_top_passages([question(0, "Lima")], Down(), 3))
