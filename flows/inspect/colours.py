"""How a rollout's text is coloured on a terminal, wherever it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flows.inspect.web.spans import SpanKind

STYLES: Final[Mapping[SpanKind, str]] = {
    "think": "italic dim",
    "query": "bold",
    "answer": "bold",
    "tag": "dim",
    "text": "",
}
NOTICE: Final = "yellow"
DOCUMENTS: Final = "dim"
