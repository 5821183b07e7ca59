"""How figures are written on the pages."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from flows.console.terminal import format_seconds


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure with so many digits after the point, a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 2) -> str:
    """Return a figure with its sign, a dash for none."""
    return "–" if value is None else f"{value:+.{digits}f}"


def seconds(value: float | None) -> str:
    """Return a duration as people say it, a dash for none."""
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 60 else format_seconds(value)


def moment(value: datetime) -> str:
    """Return a moment to the second, UTC."""
    return f"{value:%Y-%m-%d %H:%M:%S}"


def visible(text: str) -> str:
    """Return a token's text with its blanks and line breaks as signs."""
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


FORMATS: Final[dict[str, Callable[..., Any]]] = {
    "number": number,
    "signed": signed,
    "seconds": seconds,
    "moment": moment,
    "visible": visible,
}
