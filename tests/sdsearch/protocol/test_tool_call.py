"""Calls in a tokenizer's own chat template: what was sampled and replied is what the template renders, or refused."""

from __future__ import annotations

import copy
import json
from datetime import datetime
from typing import Any

import pytest

from schemas.errors import UserError
from schemas.records.rollout import Answer, Malformed, Search
from sdsearch.protocol.chat_template import SEARCH_TOOL
from sdsearch.protocol.prompting import render_frame, render_notice
from sdsearch.protocol.tokens import decode
from sdsearch.protocol.tool_call import ToolCall
from tests.sdsearch.protocol.test_conformance import roll_out
from tests.support.builders import make_tokenizer
from tests.support.chat_templates import make_chat_tokenizer
from tests.support.protocols import ROWS


@pytest.mark.parametrize("row", [row for row in ROWS if row.id in ("qwen25", "qwen3", "llama")], ids=lambda row: row.id)
def test_a_conversation_is_what_the_template_renders(row: Any) -> None:
    tokenizer = row.make()
    notice = next(iter(row.malformed))
    group, _ = roll_out(row, (row.search, notice, row.answer))
    rollout = group.rollouts[0]
    joined = decode(tokenizer, [*group.prompt_token_ids, *rollout.token_ids])
    frame = render_frame(tokenizer, "instruct", row.open())
    messages = [{"role": "user", "content": f"{frame.before}{group.question.question}"}]
    for turn in rollout.turns:
        messages.append({"role": "assistant", "content": turn.generation.text.removesuffix(tokenizer.eos_token)})
        if turn.observation is not None and turn.observation.kind == "notice":
            messages.append({"role": "tool", "content": row.open().notices[turn.action.reason]})
        elif turn.observation is not None:
            opening, closing = row.around
            content = turn.observation.text.removeprefix(opening).removesuffix(closing)
            messages.append({"role": "tool", "content": json.loads(f'"{content}"') if row.id == "llama" else content})
    rendered = tokenizer.apply_chat_template(
        messages, tools=[SEARCH_TOOL], tokenize=False, strftime_now=datetime.now().strftime
    )
    assert rendered.removesuffix("\n") == joined


def with_template(template: str | None) -> Any:
    tokenizer = copy.deepcopy(make_tokenizer("text"))
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (with_template(None), "has no chat template"),
        (with_template("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"), "it does not show tools"),
        (with_template("{{ raise_exception('tools are not supported') }}"), "tools are not supported"),
        (make_chat_tokenizer("drops"), r"'hink>.nI should look.*strict = false"),
    ],
    ids=["none", "no tools", "raises", "drops thinking"],
)
def test_a_template_that_cannot_serve_is_refused(tokenizer: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        render_frame(tokenizer, "instruct", ToolCall())
    assert "\n" not in str(caught.value)


def test_without_thinking_a_template_that_drops_the_empty_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"part from its rendering.*strict = false"):
        render_frame(make_chat_tokenizer("qwen3"), "instruct", ToolCall(thinking=False))


def test_a_turn_that_was_cut_off_is_ended_by_the_environment() -> None:
    tokenizer = make_chat_tokenizer("qwen25")
    for last, ended in ((tokenizer.eos_token_id, ""), (5, "<|im_end|>")):
        text = render_notice(tokenizer, "two_calls", ToolCall(), last).text
        assert text.startswith(f"{ended}\n<|im_start|>user\n<tool_response>\nMore than one call")
        assert text.endswith("</tool_response><|im_end|>\n<|im_start|>assistant\n")


def call(arguments: str, rest: str = "") -> str:
    return f'<tool_call>\n{{"name": "search", "arguments": {arguments}{rest}}}\n</tool_call><|im_end|>'


@pytest.mark.parametrize(
    "text",
    [
        call('{"query": "a", "limit": 3}'),
        call('{"query": "a"}', ', "id": 1'),
        call(r'{"query": "a", "qu\u0065ry": "b"}'),
        call('{"query": ["a"]}'),
        call('{"query": "a"}').replace("\n</tool_call>", ""),
        call('["query"]'),
        call('{"query": "a"}', "} and more"),
    ],
)
def test_a_call_with_anything_but_a_query_is_unreadable(text: str) -> None:
    assert ToolCall().parse(text) == Malformed(reason="unreadable")


@pytest.mark.parametrize(
    ("arguments", "query", "written"),
    [
        (r'{"query": "two\nlines \u00e9 \\"}', "two\nlines é \\", r"two\nlines \u00e9 \\"),
        ('{"query": "a", "query": "b"}', "b", "b"),
        ('{"query":  "after </think>"}', "after </think>", "after </think>"),
    ],
    ids=["escapes", "the last of two", "a mark of thinking"],
)
def test_the_query_is_what_the_json_says_and_its_place_what_was_written(
    arguments: str, query: str, written: str
) -> None:
    text = f"<think>\nhm\n</think>\n\n{call(arguments)}"
    assert ToolCall().parse(text) == Search(query=query)
    assert text[slice(*ToolCall().query_span(text))] == written


def test_what_it_writes_ends_the_turn_and_thinks_where_the_template_does() -> None:
    for family, thinks in (("qwen25", False), ("qwen3", True)):
        tokenizer, own = make_chat_tokenizer(family), ToolCall()
        assert own.turn_end(tokenizer) == "<|im_end|>"
        for action in (Search(query="a"), Answer(answer="b")):
            assert own.write(tokenizer, action, "hm").startswith("<think>\nhm\n</think>\n\n") == thinks


def test_each_malformed_call_has_the_notice_of_what_was_wrong() -> None:
    own, tokenizer = ToolCall(), make_chat_tokenizer("qwen25")
    texts = {reason: render_notice(tokenizer, reason, own, tokenizer.eos_token_id).text for reason in own.notices}
    assert len(set(texts.values())) == len(texts)
    assert all(own.notices[reason] in text for reason, text in texts.items())
