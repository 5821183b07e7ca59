"""What the terminal shows: data from files never steers it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Cc: control characters, also ESC; Cf: direction marks and joiners; Zl, Zp: line and paragraph separators.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(value: object) -> str:
    """Return a value's text with every character that could steer a terminal written out as an escape.

    Line breaks and tabs stay.
    """
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def plain(value: object) -> Text:
    """Return a value as rich text that is shown as it is: neither markup nor control characters act."""
    return Text(printable(value))


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> Table:
    """Return a table of plain cells, numbers aligned to the right, None as '-'."""
    table = Table(box=SIMPLE_HEAD, title=plain(title) if title else None, title_justify="left")
    cells = [list(row) for row in rows]
    for place, column in enumerate(columns):
        numeric = any(_is_number(row[place]) for row in cells)
        table.add_column(plain(column), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(plain(format_value(value)) for value in row))
    return table


def format_value(value: object) -> str:
    """Return a cell's text: floats to at most four digits after the point (small ones as 1.2e-05), None as '-'."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    small = 0 < abs(value) < 1e-3
    return f"{value:.1e}" if small else f"{value:.4f}".rstrip("0").removesuffix(".")


def format_seconds(seconds: float) -> str:
    """Return a duration as people read it, such as 4.2 s, 3 min 10 s or 2 h 5 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def print_line(console: Console, text: str) -> None:
    """Print one line of text that may hold data."""
    console.print(plain(text), soft_wrap=True)


def takes_any_text(stream: TextIO) -> bool:
    """True for a file or pipe whose encoding has every character: data can be printed to it as they are."""
    return not stream.isatty() and (stream.encoding or "").lower().replace("-", "").startswith("utf")


def ascii_json(text: str) -> str:
    """Return JSON with every character that is not printable ASCII as an escape, which means the same."""
    return "".join(c if c.isascii() and c.isprintable() else _json_escape(c) for c in text)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))


def _visible(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _UNPRINTABLE:
        return character
    return character.encode("unicode_escape").decode("ascii")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
