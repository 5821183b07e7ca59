"""Text that has too little room: what is longest is cut first, to a common length, before anything is left out.

Lengths are counted in pieces, a word with the blanks before it (of a longer word, 16 characters), so that the cut does
not depend on the tokenizer and no common word is divided.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

MARK: Final = "…"
_PIECE = re.compile(r"\s*\S{1,16}")


def num_pieces(text: str) -> int:
    """Return the length of a text in pieces."""
    return len(_PIECE.findall(text))


def shorten(text: str, max_pieces: int) -> str:
    """Return the text's first pieces and a mark; the text itself where it has no more."""
    pieces = _PIECE.findall(text)
    if len(pieces) <= max_pieces:
        return text
    return f"{''.join(pieces[:max_pieces])} {MARK}" if max_pieces else MARK


def shorten_all(texts: Sequence[str], max_pieces: int) -> tuple[str, ...]:
    """Return the first of the texts, which together have at most so many pieces; the last one is marked when cut."""
    kept: list[str] = []
    for text in texts:
        shortened = shorten(text, max_pieces)
        kept.append(shortened)
        if shortened is not text:
            break
        max_pieces -= num_pieces(text)
    return tuple(kept)


def largest(fits: Callable[[int], bool], end: int) -> int | None:
    """Return the largest number below `end` that fits, by bisection; None where 0 does not."""
    if end < 1 or not fits(0):
        return None
    low = 0
    while end - low > 1:
        middle = (low + end) // 2
        if fits(middle):
            low = middle
        else:
            end = middle
    return low
