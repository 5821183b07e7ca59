"""The protocols that the conformance test asks for the same things: a row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerFast

from schemas.records.rollout import MalformedReason
from schemas.settings.root import RolloutSettings
from sdsearch.protocol.ports import ActionProtocol, open_protocol
from tests.support.builders import make_tokenizer


@dataclass(frozen=True)
class ProtocolRow:
    """What a policy writes in a protocol, and what it means there."""

    id: str
    protocol: str
    make: Callable[[], PreTrainedTokenizerFast]
    search: str  # A turn that searches for `query`, which is written as `written`.
    written: str
    query: str
    answer: str  # A turn that answers 'Lima'.
    malformed: Mapping[str, MalformedReason]
    around: tuple[str, str]  # What stands around documents after a turn that ended as it should.
    options: Mapping[str, Any] = field(default_factory=dict)

    def open(self) -> ActionProtocol:
        """Return the protocol as the settings open it."""
        return open_protocol(RolloutSettings(protocol=self.protocol, protocol_options=dict(self.options)))


_TAG_TURNS: Any = {
    "search": "<think> hm </think><search> capital of Perú </search>",
    "written": " capital of Perú ",
    "query": "capital of Perú",
    "answer": "<think> so </think><answer> Lima </answer>",
    "malformed": {
        "<search> never closed": "no_action",
        "<search> cut </sear": "no_action",
        "capital </search>": "not_opened",
        "<search>  </search>": "empty_query",
        "<answer></answer>": "empty_answer",
    },
}
_TEXT, _SPECIAL = partial(make_tokenizer, "text"), partial(make_tokenizer, "special")
ROWS = (
    ProtocolRow("tags", "tags", _TEXT, **_TAG_TURNS, around=("\n<documents>\n", "\n</documents>\n")),
    ProtocolRow("tags_special", "tags", _SPECIAL, **_TAG_TURNS, around=("\n<documents>\n", "\n</documents>\n")),
    ProtocolRow("search_r1", "search_r1", _TEXT, **_TAG_TURNS, around=("\n\n<information>", "</information>\n\n")),
    ProtocolRow("autorefine", "autorefine", _TEXT, **_TAG_TURNS, around=("\n\n<documents>", "</documents>\n\n")),
)
