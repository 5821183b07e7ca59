"""Scripts that are written without blanks between words: Han, kana, Thai, Lao, Burmese, Khmer.

Whoever looks for words there finds none: searches take pairs of neighbouring characters instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

_SCRIPTS: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u33ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U0001f200-\U0001f2ff\U00020000-\U0003ffff"
)
_CHARACTER: Final = re.compile(f"[{_SCRIPTS}]")
_PARTS: Final = re.compile(f"[{_SCRIPTS}]+|[^{_SCRIPTS}]+")


def has_unspaced(text: str) -> bool:
    """True for a text with a character of such a script."""
    return not text.isascii() and _CHARACTER.search(text) is not None


def split_unspaced(words: Iterable[str]) -> list[str]:
    """Return words, with each run of such characters as its overlapping pairs; a run of one stays as it is."""
    return [part for word in words for part in (_parts(word) if has_unspaced(word) else (word,))]


def _parts(word: str) -> Iterable[str]:
    for part in _PARTS.findall(word):
        if len(part) == 1 or not has_unspaced(part):
            yield part
        else:
            yield from ("".join(pair) for pair in pairwise(part))
