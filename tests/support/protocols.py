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
from tests.support.chat_templates import make_chat_tokenizer


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
_HALF = r"\ud800"
_WRITTEN, _QUERY = r"capital of \"Per\u00fa\"", 'capital of "Perú"'


def _call_turns(end: str, key: str, before: str, after: str) -> Any:
    """Turns of a template's own calls."""

    def call(name: str, query: str) -> str:
        return f'{before}{{"name": "{name}", "{key}": {{"query": "{query}"}}}}{after}'

    cut = "</tool_ca" if after else ""
    return {
        "search": f"<think>\nhm\n</think>\n\n{call('search', _WRITTEN)}{end}",
        "written": _WRITTEN,
        "query": _QUERY,
        "answer": f"<think>\nso <answer> x </answer>\n</think>\n\n<answer> Lima </answer>{end}",
        "malformed": {
            f"<think>\nhm\n</think>\n\n{before}{{'name': 'search'{after}{end}": "unreadable",
            f"{call('search', 'x').removesuffix(after or '}')}{cut}{end}": "unreadable",
            f"{call('search', 'x').replace('query', 'text')}{end}": "unreadable",
            f"{call('search', _HALF)}{end}": "unreadable",
            f"{call('find', 'x')}{end}": "unknown_tool",
            f"{call('search', 'x')}\n{call('search', 'y')}{end}": "two_calls",
            f"{call('search', ' ')}{end}": "empty_query",
            f"<think>\nonly {call('search', 'x')}": "no_action",
            f"I do not know.{end}": "no_action",
            f"Lima </answer>{end}": "not_opened",
            f"<answer> </answer>{end}": "empty_answer",
        },
    }


_QWEN_TURNS = _call_turns("<|im_end|>", "arguments", "<tool_call>\n", "\n</tool_call>")
_QWEN_AROUND = (
    "\n<|im_start|>user\n<tool_response>\n",
    "\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
)
_QWEN_NO_THINKING = (_QWEN_AROUND[0], f"{_QWEN_AROUND[1]}<think>\n\n</think>\n\n")
_LLAMA_TURNS = _call_turns("<|eot|>", "parameters", "", "")
_LLAMA_AROUND = ('<|start|>ipython<|stop|>\n\n"', '"<|eot|><|start|>assistant<|stop|>\n\n')


def _chat(family: str) -> Callable[[], PreTrainedTokenizerFast]:
    return partial(make_chat_tokenizer, family)


ROWS = (
    ProtocolRow("tags", "tags", _TEXT, **_TAG_TURNS, around=("\n<documents>\n", "\n</documents>\n")),
    ProtocolRow("tags_special", "tags", _SPECIAL, **_TAG_TURNS, around=("\n<documents>\n", "\n</documents>\n")),
    ProtocolRow("search_r1", "search_r1", _TEXT, **_TAG_TURNS, around=("\n\n<information>", "</information>\n\n")),
    ProtocolRow("autorefine", "autorefine", _TEXT, **_TAG_TURNS, around=("\n\n<documents>", "</documents>\n\n")),
    ProtocolRow("qwen25", "tool_call", _chat("qwen25"), **_QWEN_TURNS, around=_QWEN_AROUND),
    ProtocolRow("qwen3", "tool_call", _chat("qwen3"), **_QWEN_TURNS, around=_QWEN_AROUND),
    ProtocolRow(
        "qwen3_no_thinking",
        "tool_call",
        _chat("qwen3"),
        **_QWEN_TURNS,
        around=_QWEN_NO_THINKING,
        options={"thinking": False, "strict": False},
    ),
    ProtocolRow("llama", "tool_call", _chat("llama"), **_LLAMA_TURNS, around=_LLAMA_AROUND),
)
