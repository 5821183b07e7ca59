"""The mini policy that calls tools: its template serves the protocol, and it learns from its own words."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from flows.settings.model_folder import local_folder
from schemas.records.rollout import Search
from sdsearch.model.policy import load_model, load_tokenizer
from sdsearch.protocol.chat_template import SEARCH_TOOL, tool_frame
from sdsearch.protocol.tokens import encode
from sdsearch.protocol.tool_call import ToolCall
from sdsearch.world.build import BuildProgress
from sdsearch.world.tool_calls import MAX_NEW_TOKENS, give_template, tool_layout, train_tool_calls

MARKS = ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


def policy() -> tuple[Any, Any]:
    model, tokenizer = load_model(local_folder("mini"), "float32"), load_tokenizer(local_folder("mini"))
    give_template(model, tokenizer)
    return model, tokenizer


@cache
def given() -> tuple[Any, Any]:
    return policy()


def test_the_template_is_what_the_protocol_needs() -> None:
    _, tokenizer = given()
    frame = tool_frame(tokenizer, None, True)
    told = SEARCH_TOOL["function"]["description"]
    assert frame.head == f"<|im_start|>system\nsearch(query): {told}<|im_end|>\n<|im_start|>user\n"
    assert (frame.tail, frame.end) == ("<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
    own = ToolCall()
    turn = own.write(tokenizer, Search(query='the "Arda"'), "") + own.turn_end(tokenizer)
    assert len(encode(tokenizer, turn)) < MAX_NEW_TOKENS
    assert own.parse(turn) == Search(query='the "Arda"')
    assert tool_layout(tokenizer).frame.head == frame.head


def test_a_mark_is_one_token_that_begins_as_one_it_is_like_and_the_others_stay() -> None:
    model, tokenizer = given()
    before = load_model(local_folder("mini"), "float32").get_input_embeddings().weight
    after = model.get_input_embeddings().weight
    assert torch.equal(after[: len(before)], before)
    assert all(len(encode(tokenizer, mark)) == 1 for mark in MARKS)
    assert encode(tokenizer, "<search> river </search>")[0] < len(before), "tags are single tokens as before"
    call, search = encode(tokenizer, "<tool_call><search>")
    assert torch.equal(after[call], after[search])
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.long
def test_training_lowers_the_loss_and_repeats_itself_exactly() -> None:
    weights, losses = [], []
    for _ in range(2):
        model, tokenizer = policy()
        told: list[BuildProgress] = []
        train_tool_calls(model, tokenizer, 0, told.append, 6)
        losses.append([each.loss for each in told if each.stage == "tool calls"])
        weights.append(model.state_dict())
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
    assert losses[0][-1] < losses[0][0]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
