"""A rollout's text as spans: who wrote what, which words are golden, and what the teacher says of each query token.

Everything here is plain data; the templates escape it. A token's credit becomes small whole numbers (`Shades`), since
the pages' content security policy allows no colour that is written into the page: the style sheet has one a number.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

from flows.inspect.web.formats import visible

SpanKind = Literal["think", "query", "answer", "tag", "text"]
_TAG: Final = re.compile(r"</?(think|search|answer|documents|information|tool_call|tool_response)>")
_KINDS: Final[dict[str, SpanKind]] = {"think": "think", "search": "query", "answer": "answer"}
RATIO_EDGES: Final = (-2.0, -1.0, -0.5, -0.2, -0.05, 0.05, 0.2, 0.5, 1.0, 2.0)
"""Borders of the eleven shades of log p_teacher - log p_student, nats; the middle one is no difference."""
JSD_EDGES: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2)
ENTROPY_EDGES: Final = (0.01, 0.1, 0.5, 1.0, 2.0, 3.0)
GAP_EDGES: Final = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


class Shades(NamedTuple):
    """Which shade a token has in each of the four shadings."""

    ratio: int  # 0 (the teacher finds it far less likely) to 10 (far more); 5 is no difference
    jsd: int  # 0 to 6
    entropy: int  # 0 to 6, of the student
    gap: int  # 0 to 6: how far sampler and trainer differ


class Token(NamedTuple):
    """A token with what the teacher says of it."""

    text: str
    credit: dict[str, Any]
    shades: Shades

    @property
    def reading(self) -> dict[str, Any]:
        """What the page shows of it when it is pointed at: numbers in nats, tokens with their log-probabilities."""
        shown = ("teacher_logprob", "student_logprob", "jsd", "teacher_entropy", "student_entropy")
        tops = {
            side: [[visible(top["token"]), top["logprob"], top["token_id"] == self.credit["token_id"]] for top in found]
            for side, found in (("teacher", self.credit["teacher_top"]), ("student", self.credit["student_top"]))
        }
        return {"token": visible(self.text), **{name: self.credit[name] for name in shown}, **tops}


class Piece(NamedTuple):
    """Some characters of one author and kind; `tokens` are a query's, where the teacher was asked of them."""

    kind: SpanKind
    text: str
    tokens: tuple[Token, ...] = ()


def pieces_of(text: str, credit: Sequence[dict[str, Any]] = ()) -> list[Piece]:
    """Return a turn's text as pieces; `credit` are its credited tokens in order, which a query's piece then holds.

    Tokens whose text is not the query's (another masking was distilled) are left with the turn: see `tokens_of`.
    """
    pieces: list[Piece] = []
    kind: SpanKind = "text"
    at = 0
    for tag in _TAG.finditer(text):
        pieces += _piece(kind, text[at : tag.start()], credit)
        pieces.append(Piece("tag", tag[0]))
        kind = "text" if tag[0].startswith("</") else _KINDS.get(tag[1], "text")
        at = tag.end()
    return pieces + _piece(kind, text[at:], credit)


def _piece(kind: SpanKind, text: str, credit: Sequence[dict[str, Any]]) -> list[Piece]:
    if not text:
        return []
    if kind == "query" and (tokens := _inside(text, credit)):
        return [Piece(kind, text, tokens)]
    return [Piece(kind, text)]


def _inside(text: str, credit: Sequence[dict[str, Any]]) -> tuple[Token, ...]:
    """Return the credited tokens that make up the text, with the characters around them as tokens without credit."""
    joined = "".join(row["token"] for row in credit)
    start = text.find(joined) if joined else -1
    if start < 0:
        return ()
    tokens = [Token(row["token"], row, shades_of(row)) for row in credit]
    before = [Token(text[:start], {}, _NONE)] if start else []
    after = [Token(text[start + len(joined) :], {}, _NONE)] if start + len(joined) < len(text) else []
    return tuple(before + tokens + after)


_NONE: Final = Shades(5, 0, 0, 0)


def shades_of(row: dict[str, Any]) -> Shades:
    """Return a credited token's shades; `sampled_logprob` may be missing or None."""
    sampled = row.get("sampled_logprob")
    gap = abs(sampled - row["student_logprob"]) if sampled is not None else 0.0
    return Shades(
        bisect_right(RATIO_EDGES, row["teacher_logprob"] - row["student_logprob"]),
        bisect_right(JSD_EDGES, row["jsd"]),
        bisect_right(ENTROPY_EDGES, row["student_entropy"]),
        bisect_right(GAP_EDGES, gap),
    )


class Part(NamedTuple):
    """Some characters, and whether they are a golden answer."""

    text: str
    is_golden: bool


def marked(text: str, golden_answers: Sequence[str]) -> list[Part]:
    """Return a text cut where golden answers stand in it, letters' case apart and whole words only."""
    answers = sorted({answer.strip() for answer in golden_answers if answer.strip()}, key=len, reverse=True)
    if not answers or not text:
        return [Part(text, False)] if text else []
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, answers)) + r")(?!\w)", re.IGNORECASE)
    parts: list[Part] = []
    at = 0
    for found in pattern.finditer(text):
        if found.start() > at:
            parts.append(Part(text[at : found.start()], False))
        parts.append(Part(found[0], True))
        at = found.end()
    return parts + ([Part(text[at:], False)] if at < len(text) else [])
