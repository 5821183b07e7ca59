"""What a command prints, compared in form: the same words, columns and number of rows; numbers may differ."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Final

ANYTHING: Final = "…"
_RULE: Final = re.compile(r"[─━]{3,}")
_FORMS: Final = (
    (_RULE, "─"),
    (re.compile(r"\b(?=[a-f]*\d)[0-9a-f]{8,64}\b"), "#"),
    (re.compile(r"\d[\d,.]* (?:h|min|s)\b(?: \d+ (?:min|s)\b)*"), "# s"),
    (re.compile(r"[-+−]?(?:\d[\d,.]*)?\d(?:e[-+]?\d+)?"), "#"),
    (re.compile(r"\s+"), " "),
)
_WIDTH: Final = 120


def form(text: str) -> str:
    """Return a text with placeholders for numbers, times and hashes, and one blank for several."""
    for pattern, placeholder in _FORMS:
        text = pattern.sub(placeholder, text)
    return text.strip()


def is_like(shown: Sequence[str], printed: Sequence[str], *, rows_vary: bool = False) -> bool:
    """True when a command printed what a page shows, but for numbers and line breaks; `…` stands for anything."""
    if rows_vary:
        shown, printed = without_rows(shown), without_rows(printed)
    return re.fullmatch(_pattern(shown), form(" ".join(printed)), re.DOTALL) is not None


def without_rows(lines: Sequence[str]) -> list[str]:
    """Return lines without the rows of tables, one blank row for all of a table's."""
    kept: list[str] = []
    in_rows = False
    for line in lines:
        in_rows = in_rows and bool(line.strip())
        if not in_rows:
            kept.append(line)
        in_rows = in_rows or _is_rule(line)
    return kept


def rewritten(shown: Sequence[str], printed: Sequence[str]) -> list[str]:
    """Return what a page should show: what was printed, long lines folded; what it leaves out stays left out.

    Blank lines at its ends stay as the page has them.
    """
    if form(" ".join(shown)) == form(" ".join(printed)) or not any(ANYTHING in line for line in shown):
        above, below = (bool(shown) and not shown[place].strip() for place in (0, -1))
        folded = [part for line in printed for part in _folded(line.rstrip())]
        return [*[""] * above, *folded, *[""] * (below and bool(folded))]
    lines: list[str] = []
    place = 0
    for line in shown:
        stays = ANYTHING in line or not line.strip() or _is_rule(line)
        found = _line_like(line, printed, place)
        lines.append(line if found is None or stays else printed[found].rstrip())
        place = place if found is None or not line.strip() else found + 1
    return lines


def _pattern(lines: Sequence[str]) -> str:
    words = form(" ".join(lines)).split(ANYTHING)
    # What is left out may be whole lines, with the blanks around them.
    return ".*".join(re.escape(word.strip()) if ANYTHING in " ".join(lines) else re.escape(word) for word in words)


def _line_like(line: str, printed: Sequence[str], start: int) -> int | None:
    """Return the place of the printed line that a shown one stands for: the one that begins alike, else the first."""
    if line.strip() == ANYTHING:
        return None
    like = [place for place in range(start, len(printed)) if is_like([line], [printed[place]])]
    same = [place for place in like if printed[place].split()[:3] == line.split()[:3]]
    return next(iter([*same, *like]), None)


def _folded(line: str) -> list[str]:
    """Return a line of words in lines that fit a page; what is laid out in columns stays."""
    if len(line) <= _WIDTH or line.startswith(" ") or "  " in line:
        return [line]
    return textwrap.wrap(line, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _is_rule(line: str) -> bool:
    return _RULE.fullmatch(line.strip()) is not None
