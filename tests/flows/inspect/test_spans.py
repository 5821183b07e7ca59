"""A rollout's text as spans, and the shades of its tokens."""

from __future__ import annotations

import pytest

from flows.inspect.web.spans import RATIO_EDGES, marked, pieces_of, shades_of


def test_pieces_hold_the_text_and_a_query_s_tokens() -> None:
    text = "<think> so </think>\n<search> capital of Peru </search> rest"
    credit = [
        {"token": token, "teacher_logprob": -1.0, "student_logprob": -2.0, "jsd": 0.1, "student_entropy": 0.2}
        for token in (" capital", " of", " Peru")
    ]
    pieces = pieces_of(text, credit)
    assert "".join(piece.text for piece in pieces) == text
    (query,) = [piece for piece in pieces if piece.kind == "query"]
    assert [token.text for token in query.tokens] == [" capital", " of", " Peru", " "]
    assert [bool(token.credit) for token in query.tokens] == [True, True, True, False]
    assert [piece.kind for piece in pieces] == ["tag", "think", "tag", "text", "tag", "query", "tag", "text"]


@pytest.mark.parametrize(("difference", "shade"), [(-9.0, 0), (-0.01, 5), (0.0, 5), (0.3, 7), (9.0, len(RATIO_EDGES))])
def test_the_shade_says_how_far_teacher_and_student_differ(difference: float, shade: int) -> None:
    row = {"teacher_logprob": difference - 1.0, "student_logprob": -1.0, "jsd": 0.0, "student_entropy": 0.0}
    assert shades_of(row).ratio == shade


def test_golden_answers_are_marked_as_whole_words() -> None:
    parts = marked("Lima, and limade: LIMA.", ["Lima"])
    assert [(part.text, part.is_golden) for part in parts] == [
        ("Lima", True),
        (", and limade: ", False),
        ("LIMA", True),
        (".", False),
    ]
    assert marked("x", []) == [("x", False)]
