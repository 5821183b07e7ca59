"""A rollout as steps: what the policy wrote in a turn, part by part, and the environment's reply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, assert_never

from flows.inspect.web.spans import Piece, SpanKind, pieces_of
from schemas.records.asking import AskStep, NoticeStep, PassagesStep, WrittenStep
from schemas.records.rollout import Answer, Malformed, Search, Turn
from sdsearch.protocol.tokens import token_char_spans
from sdsearch.sampling.rollouts import RolloutLoop

WrittenKind = Literal["think", "query", "answer", "text"]


@dataclass
class _Part:
    """A part of a turn's text with its tags; `end` is where the next one begins, in characters."""

    kind: SpanKind
    text: str
    end: int


def steps_of(loop: RolloutLoop, number: int, turn: Turn) -> Iterator[AskStep]:
    """Yield the steps of a rollout's turn, `number` counted from 1; the turn's tokens are all counted, each once."""
    spans = token_char_spans(loop.tokenizer, turn.generation.token_ids)
    parts = _parts(pieces_of(turn.generation.text))
    start = 0
    for part, kind in zip(parts, _kinds(parts, turn), strict=True):
        is_last = part is parts[-1]
        num_tokens = sum(start <= first and (first < part.end or is_last) for first, _ in spans)
        yield WrittenStep(kind=kind, turn=number, text=part.text.strip(), num_tokens=num_tokens)
        start = part.end
    reply = turn.observation
    if reply is None:
        return
    if isinstance(turn.action, Malformed):
        yield NoticeStep(
            turn=number, reason=turn.action.reason, text=reply.text.strip(), num_tokens=len(reply.token_ids)
        )
    if isinstance(turn.action, Search):
        yield PassagesStep(
            turn=number,
            query=turn.action.query,
            hits=reply.hits,
            num_tokens=len(reply.token_ids),
            num_tokens_cut=reply.num_tokens_cut,
        )


def _parts(pieces: list[Piece]) -> list[_Part]:
    """Join each piece with its tags; blanks between parts belong to the part before them."""
    if not pieces:
        return [_Part("text", "", 0)]  # Tokens without a text.
    parts: list[_Part] = []
    at, opened = 0, False
    for piece in pieces:
        at += len(piece.text)
        if piece.kind == "tag" and not piece.text.startswith("</"):
            parts.append(_Part("text", "", at))
            opened = True
        elif parts and (piece.kind == "tag" or not piece.text.strip()):
            parts[-1].end, opened = at, opened and piece.kind != "tag"
        elif opened:
            parts[-1] = _Part(piece.kind, piece.text, at)
            opened = False
        else:
            parts.append(_Part(piece.kind, piece.text, at))
    return parts


def _kinds(parts: list[_Part], turn: Turn) -> list[WrittenKind]:
    """Return what each part is: a query or an answer is only what the turn's action was read from."""
    match turn.action:
        case Search():
            wanted: WrittenKind = "query"
        case Answer():
            wanted = "answer"
        case Malformed():
            wanted = "text"
        case unknown:
            assert_never(unknown)
    kinds: list[WrittenKind] = ["think" if part.kind == "think" else "text" for part in parts]
    # In a protocol of other tags than the shipped one's, the last part has the action.
    places = [place for place, part in enumerate(parts) if part.kind == wanted] or [len(parts) - 1]
    kinds[places[-1]] = kinds[places[-1]] if wanted == "text" else wanted
    return kinds
