"""A hindsight block as text and tokens: harmless, and cut to the room that there is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from transformers import PreTrainedTokenizerBase

from schemas.records.hindsight import HindsightAttempt
from sdsearch.credit.block_variants import QueriesOnly
from sdsearch.protocol.fitting import largest, num_pieces, shorten, shorten_all
from sdsearch.protocol.tokens import TAGS, encode_foreign, neutralise_tags

ANSWER: Final = "Golden answer: "
"""How the line begins that hindsight.answer adds to a block."""
_LABEL = re.compile(r"\([(\s]*((?:in)?correct)[)\s]*\)", re.IGNORECASE)


def neutralise(text: str, tags: tuple[str, ...] = TAGS) -> str:
    """Make foreign text safe inside a block: one line, no tags, no separator, no label."""
    flat = " ".join(text.split()).replace("|", "/")
    # Tags last: `<|search>` is one only after the line before.
    return neutralise_tags(_LABEL.sub(lambda match: match[1].lower(), flat), tags)


Render = Callable[[Sequence[HindsightAttempt]], str]


def render_block(attempts: Sequence[HindsightAttempt]) -> str:
    """Return the paper's block as text: the header, then a line an attempt in the given order."""
    return QueriesOnly().render(attempts)


class EncodedBlock(NamedTuple):
    """A block's text and tokens, the attempts as they stand in it, and what it lost to fit."""

    attempts: tuple[HindsightAttempt, ...]
    text: str
    token_ids: list[int]
    num_dropped: int
    num_shortened: int
    num_cut_tokens: int


def encode_block(
    tokenizer: PreTrainedTokenizerBase,
    attempts: Sequence[HindsightAttempt],
    max_tokens: int,
    render: Render = render_block,
    tags: tuple[str, ...] = TAGS,
) -> EncodedBlock:
    """Return the block that fits: the longest attempts are cut first, to a common length; labels stay whole.

    Where not even a mark an attempt has room, attempts leave from the end; without room for the header it is empty.
    """
    whole = encode_foreign(tokenizer, render(attempts), tags)
    if len(whole) <= max_tokens:
        return EncodedBlock(tuple(attempts), render(attempts), whole, 0, 0, 0)
    for kept in range(len(attempts), -1, -1):
        shown = _cut_evenly(tokenizer, attempts[:kept], max_tokens, render, tags)
        if shown is not None:
            token_ids = encode_foreign(tokenizer, render(shown), tags)
            num_shortened = sum(cut != full for cut, full in zip(shown, attempts, strict=False))
            lost = len(attempts) - kept, num_shortened, len(whole) - len(token_ids)
            return EncodedBlock(tuple(shown), render(shown), token_ids, *lost)
    return EncodedBlock((), "", [], len(attempts), 0, len(whole))


def _cut_evenly(
    tokenizer: PreTrainedTokenizerBase,
    attempts: Sequence[HindsightAttempt],
    max_tokens: int,
    render: Render,
    tags: tuple[str, ...],
) -> list[HindsightAttempt] | None:
    """Return the attempts cut to the largest common length with which they fit, None where they fit with none."""

    def cut(max_pieces: int) -> list[HindsightAttempt]:
        contents = [shorten_all(attempt.contents, max_pieces) for attempt in attempts]
        return [a.model_copy(update={"contents": shown}) for a, shown in zip(attempts, contents, strict=True)]

    def fits(max_pieces: int) -> bool:
        return len(encode_foreign(tokenizer, render(cut(max_pieces)), tags)) <= max_tokens

    longest = max((sum(map(num_pieces, attempt.contents)) for attempt in attempts), default=0)
    pieces = largest(fits, longest + 1)
    return None if pieces is None else cut(pieces)


def encode_documents(
    tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int, tags: tuple[str, ...] = TAGS
) -> EncodedBlock:
    """Return the block of a turn's documents, cut at its end where it is too long."""
    whole = encode_foreign(tokenizer, text, tags)
    if len(whole) <= max_tokens:
        return EncodedBlock((), text, whole, 0, 0, 0)

    def fits(max_pieces: int) -> bool:
        return len(encode_foreign(tokenizer, shorten(text, max_pieces), tags)) <= max_tokens

    pieces = largest(fits, num_pieces(text) + 1)
    text = "" if pieces is None else shorten(text, pieces)
    token_ids = encode_foreign(tokenizer, text, tags)
    return EncodedBlock((), text, token_ids, 0, 0, len(whole) - len(token_ids))


def with_answer(render: Render, golden_answers: Sequence[str], tags: tuple[str, ...] = TAGS) -> Render:
    """Return a rendering that ends in the golden answers (a leak to the teacher), the same one where there are none."""
    if not golden_answers:
        return render
    answers = " | ".join(neutralise(answer, tags) for answer in golden_answers)

    def rendered(attempts: Sequence[HindsightAttempt]) -> str:
        return render(attempts).removesuffix("\n") + f"{ANSWER}{answers}\n\n"

    return rendered
