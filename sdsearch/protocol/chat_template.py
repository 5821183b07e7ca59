"""What a tokenizer's chat template puts around messages, and whether that can be cut without changing a word."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from schemas.errors import UserError, library_errors
from sdsearch.protocol.tokens import encode

PROBE: Final = "probe"
WHERE: Final = "the chat template of model.path's tokenizer"
REMEDY: Final = "correct chat_template in that folder, or choose another model.path"
# Nothing that stands in a message may be changed, and neither its length nor its words may matter.
_PROBES = ("\u241eOne\u241e", "\u241eA \"b\" & 'c' <d> {e}\\\n\n é  F\u241e", f"\u241e{'Many words. ' * 400}\u241e")
SEARCH_TOOL: Final[Mapping[str, Any]] = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search an encyclopedia and return the best passages.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "What to search for."}},
            "required": ["query"],
        },
    },
}
_THOUGHT = "<think>\nI should look.\n</think>\n\n"


def message_frame(tokenizer: PreTrainedTokenizerBase, **arguments: Any) -> tuple[str, str]:
    """Return what a chat template puts before and after the user's message, whatever the message is.

    Empty texts without a template; UserError for one that fails or does not keep the message as it is.
    """
    if not tokenizer.chat_template:
        return "", ""
    arguments = {"strftime_now": datetime.now().astimezone().strftime} | arguments  # One moment for all probes.
    frames = []
    for probe in _PROBES:
        rendered = _render(tokenizer, [{"role": "user", "content": probe}], arguments)
        if (count := rendered.count(probe)) != 1:
            found = "more than once" if count else "not as it is (it is left out, cut or changed)"
            raise UserError(f"{WHERE}: the user's message is in the prompt {found}; {REMEDY}")
        head, _, tail = rendered.partition(probe)
        frames.append((head, tail))
    if len(set(frames)) > 1:
        raise UserError(f"{WHERE}: the text around the user's message depends on the message; {REMEDY}")
    return frames[0]


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Any], arguments: Mapping[str, Any]) -> str:
    with library_errors(WHERE, REMEDY):
        rendered: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, **{"add_generation_prompt": True, **arguments}
        )
    return rendered


@dataclass(frozen=True)
class ToolFrame:
    """What the template puts around the messages of a conversation with a search tool."""

    head: str  # Before the user's words: the system turn, the tool, role marks.
    tail: str  # After them, to the start of the policy's first turn.
    end: str  # The token that ends a turn of the policy.
    end_id: int
    opening: str  # Between that token and the tool's reply.
    closing: str  # After the reply, to the start of the policy's next turn.
    escapes: bool  # True where the reply is written as a JSON string.
    call: str  # The call of a search for PROBE, as the template writes it.
    thinks: bool  # True where the policy's turns begin with a thought of their own.

    def reply(self, text: str) -> str:
        """Return a reply's text as the template writes it."""
        return escape(text) if self.escapes else text


def escape(text: str) -> str:
    """Return a text as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


@lru_cache(maxsize=8)
def tool_frame(tokenizer: PreTrainedTokenizerBase, thinking: bool | None, strict: bool) -> ToolFrame:
    """Return what the template puts around the turns of a policy that calls a search tool.

    strict: the turns put together have to be what the template renders of the whole conversation. UserError, in a
    sentence that says where the two part, where they are not, and for templates without tools.
    """
    if not tokenizer.chat_template:
        raise UserError(f"rollout.protocol 'tool_call': model.path's tokenizer has no chat template; {REMEDY}")
    now = datetime.now().astimezone()
    arguments: dict[str, Any] = {"tools": [SEARCH_TOOL], "strftime_now": now.strftime}
    if thinking is not None:
        arguments["enable_thinking"] = thinking
    head, tail = message_frame(tokenizer, **arguments)
    if SEARCH_TOOL["function"]["description"] not in head + tail:
        raise UserError(f"{WHERE}: it does not show tools; choose a model.path whose template does")
    end, end_id = _end_of_turn(tokenizer, arguments)
    call = _written_call(tokenizer, end, arguments)
    reply = "\u241eA \"b\" & 'c' <d>\n é F\u241e"
    rendered = _render(tokenizer, [_user("\u241eQ\u241e"), _assistant(call), _tool(reply)], arguments)
    escapes = reply not in rendered
    before, found, closing = rendered.rpartition(escape(reply) if escapes else reply)
    ended = before.rpartition(call)[2]
    if not found or not ended.startswith(end):
        raise UserError(f"{WHERE}: a tool's reply is not in the prompt as it is, after the call; {REMEDY}")
    thinks = "</think>" in tokenizer.get_chat_template() and "</think>" not in tail
    frame = ToolFrame(head, tail, end, end_id, ended.removeprefix(end), closing, escapes, call, thinks)
    if strict:
        _compare(tokenizer, frame, arguments)
    return frame


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> tuple[str, int]:
    """Return the token with which the template ends a turn of the policy."""
    said = "\u241eSaid.\u241e"
    rendered = _render(tokenizer, [_user("Q"), _assistant(said)], {**arguments, "add_generation_prompt": False})
    token_ids = encode(tokenizer, rendered.rpartition(said)[2]) if said in rendered else []
    if not token_ids or token_ids[0] not in tokenizer.added_tokens_decoder:
        raise UserError(f"{WHERE}: no end-of-turn token follows the policy's words; {REMEDY}")
    return str(tokenizer.added_tokens_decoder[token_ids[0]].content), token_ids[0]


def _written_call(tokenizer: PreTrainedTokenizerBase, end: str, arguments: Mapping[str, Any]) -> str:
    """Return a call as the template writes it, without any thinking before it."""
    function = {"name": "search", "arguments": {"query": PROBE}}
    asked = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    question = "\u241eQ\u241e"
    rendered = _render(tokenizer, [_user(question), asked], {**arguments, "add_generation_prompt": False})
    after = rendered.rpartition(question)[2]
    before, found, _ = after.rpartition(end)
    start = before.rfind("<tool_call>") if "<tool_call>" in before else before.find("{")
    if not found or start < 0:
        raise UserError(f"{WHERE}: a call is not written as JSON; choose another model.path or protocol")
    return before[start:].rstrip()


def _compare(tokenizer: PreTrainedTokenizerBase, frame: ToolFrame, arguments: Mapping[str, Any]) -> None:
    """Raise UserError where the turns put together are not what the template renders of the conversation."""
    turns = [f"{_THOUGHT if frame.thinks else ''}{frame.call}"] * 2
    replies = ["First reply.", "Second reply."]
    messages, joined = [_user("Q")], f"{frame.head}Q{frame.tail}"
    for turn, reply in zip(turns, replies, strict=True):
        messages += [_assistant(turn), _tool(reply)]
        joined += f"{turn}{frame.end}{frame.opening}{frame.reply(reply)}{frame.closing}"
    rendered = _render(tokenizer, messages, arguments)
    if rendered == joined:
        return
    shorter = min(len(joined), len(rendered))
    at = next((i for i in range(shorter) if joined[i] != rendered[i]), shorter)
    raise UserError(
        f"{WHERE}: the turns put together part from its rendering of the conversation after {joined[:at][-30:]!r}: "
        f"sampled {joined[at:][:30]!r}, rendered {rendered[at:][:30]!r} (some templates drop earlier thinking); set "
        "rollout.protocol_options.strict = false to keep what was sampled, or choose another model.path"
    )


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _tool(text: str) -> dict[str, str]:
    return {"role": "tool", "name": "search", "content": text}
