"""Searches as calls of a tool, in the words of the tokenizer's own chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final, NamedTuple

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from schemas.records.rollout import Action, Answer, Malformed, Search, StopReason
from sdsearch.protocol.chat_template import PROBE, escape, tool_frame
from sdsearch.protocol.ports import ActionProtocol, ReplyFrame

_CALL, _CALL_END, _PYTHON = "<tool_call>", "</tool_call>", "<|python_tag|>"
_ANSWER: Final = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_QUERY: Final = re.compile(r'"query"\s*:\s*"((?:[^"\\]|\\.)*)"', re.DOTALL)
_MARKS: Final = re.compile(r"(?:\s*(?:<\|[^<>|\s]+\|>|</s>))*\s*\Z")


class _Call(NamedTuple):
    """A well-formed call: its query, and where in the turn's text that is written."""

    query: str
    span: tuple[int, int]


class ToolCall(ActionProtocol):
    """Calls as the chat template writes them (Hermes, Qwen: in `<tool_call>`; Llama: JSON alone), then `<answer>`.

    A turn ends with the model's end-of-turn token. Thinking up to `</think>` is no part of the action. Notices come in
    the tool's role too, since templates that drop earlier thinking do so at a message of the user.
    """

    stops: ClassVar[Mapping[str, StopReason]] = {}
    tags: ClassVar[tuple[str, ...]] = ("think", "tool_call", "tool_response", "tools", "answer")
    documents: ClassVar[tuple[str, str]] = ("\n<tool_response>\n", "\n</tool_response>\n")  # Of worked examples.
    instructions: ClassVar[str] = (
        "Answer the question below. If you lack knowledge, call the search tool, one call at a time; search as often "
        "as you need. When no more knowledge is needed, give only the answer inside <answer> and </answer>, without "
        "explanation, for example <answer> Beijing </answer>.\n"
    )
    thinking: bool | None = Field(default=None, description="enable_thinking of the template; unset: its default.")
    strict: bool = Field(
        default=True,
        description="Refuse a template that renders a whole conversation otherwise than as its turns were sampled.",
    )

    def parse(self, text: str) -> Action:
        """Return the call or the answer after any thinking."""
        start, end = _said(text)
        said = text[start:end]
        if _CALL in said or said.lstrip().startswith(("{", _PYTHON)):
            call = _read_call(text, start, end)
            return Search(query=call.query) if isinstance(call, _Call) else call
        answer = _ANSWER.search(said)
        if answer is None:
            return Malformed(reason="not_opened" if "</answer>" in said or _CALL_END in said else "no_action")
        content = " ".join(answer[1].split())
        return Answer(answer=content) if content else Malformed(reason="empty_answer")

    def query_span(self, text: str) -> tuple[int, int]:
        """Return the query's characters inside the call's JSON, escapes included."""
        call = _read_call(text, *_said(text))
        assert isinstance(call, _Call), "a search has a call"
        return call.span

    def write(self, tokenizer: PreTrainedTokenizerBase, action: Search | Answer, thought: str) -> str:
        """Return the call as the template writes it, or the answer; the thought stands before it where it thinks."""
        frame = tool_frame(tokenizer, self.thinking, self.strict)
        said = (
            frame.call.replace(PROBE, escape(action.query))
            if isinstance(action, Search)
            else f"<answer> {action.answer} </answer>"
        )
        return f"<think>\n{thought}\n</think>\n\n{said}" if frame.thinks else said

    def turn_end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the token that ends a turn."""
        return tool_frame(tokenizer, self.thinking, self.strict).end

    def wording(self, template: str) -> tuple[str, str]:
        """End with the question: some templates drop blanks at a message's end."""
        return f"{self.instructions if template == 'instruct' else ''}Question: ", ""

    def ask(self, question: str) -> str:
        """Return the question without blanks around it, for the same reason."""
        return question.strip()

    def message_frame(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
        """Return what the template puts around the question, the search tool included."""
        frame = tool_frame(tokenizer, self.thinking, self.strict)
        return frame.head, frame.tail

    def reply_frame(self, tokenizer: PreTrainedTokenizerBase, kind: str, last_token: int | None) -> ReplyFrame:
        """Return what the template puts around a tool's reply; the end of a turn that was cut off is added."""
        frame = tool_frame(tokenizer, self.thinking, self.strict)
        ended = "" if last_token == frame.end_id else frame.end
        return ReplyFrame(ended + frame.opening, frame.closing, frame.reply)


def _said(text: str) -> tuple[int, int]:
    """Return [start, end) of what a turn says: after its thinking, before the marks that end it."""
    end_marks = _MARKS.search(text)
    end = end_marks.start() if end_marks else len(text)
    closed = text.find("</think>")
    if closed >= 0:
        return closed + len("</think>"), max(end, closed + len("</think>"))
    return (end, end) if "<think>" in text else (0, end)


def _read_call(text: str, start: int, end: int) -> _Call | Malformed:
    """Read the one call in text[start:end], or say what is wrong with it."""
    if (opened := text.find(_CALL, start, end)) >= 0:
        if text.find(_CALL, opened + 1, end) >= 0:
            return Malformed(reason="two_calls")
        start, closed = opened + len(_CALL), text.find(_CALL_END, opened, end)
        if closed < 0:
            return Malformed(reason="unreadable")
        end = closed
    elif text[start:end].lstrip().startswith(_PYTHON):
        start = text.index(_PYTHON, start) + len(_PYTHON)
    written = text[start:end]
    try:
        value, stopped = json.JSONDecoder().raw_decode(written.lstrip())
    except (ValueError, RecursionError):
        return Malformed(reason="unreadable")
    rest = written.lstrip()[stopped:].strip("; \n\t")
    if rest:
        return Malformed(reason="two_calls" if rest.startswith("{") else "unreadable")
    return _checked(value, text, start, end)


def _checked(value: Any, text: str, start: int, end: int) -> _Call | Malformed:
    """Return the call that a JSON value is."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return Malformed(reason="unreadable")
    if value["name"] != "search":
        return Malformed(reason="unknown_tool")
    given = value.get("arguments", value.get("parameters"))
    found = list(_QUERY.finditer(text, start, end))
    if len(value) != 2 or not isinstance(given, dict) or list(given) != ["query"] or not found:
        return Malformed(reason="unreadable")
    query, span = given["query"], found[-1].span(1)
    if not isinstance(query, str) or json.loads(f'"{text[slice(*span)]}"') != query or not _is_text(query):
        return Malformed(reason="unreadable")
    return _Call(query.strip(), span) if query.strip() else _EMPTY


_EMPTY: Final = Malformed(reason="empty_query")


def _is_text(text: str) -> bool:
    """False for half of a surrogate pair, which an escape may write and no file can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
