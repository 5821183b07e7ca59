"""Actions and query tokens read off generated text."""

from __future__ import annotations

import pytest

from schemas.records.rollout import Answer, Malformed, Search
from sdsearch.protocol.parsing import make_generation, parse_action
from sdsearch.protocol.tokens import decode, token_char_spans
from tests.support.builders import make_tokenizer


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("<think> a </think>\n<search> capital of Chad </search>", Search(query="capital of Chad")),
        ("<search>\n two\n lines </search>", Search(query="two lines")),
        ("<search> first <search> second </search>", Search(query="second")),
        ("<search> first </search> then </search>", Search(query="first")),
        ("<answer> 42 </answer>", Answer(answer="42")),
        ("<search> open <answer> closed </answer>", Answer(answer="closed")),
        ("capital </search>", Malformed(reason="not_opened")),
        ("<search>   </search>", Malformed(reason="empty_query")),
        ("<answer></answer>", Malformed(reason="empty_answer")),
        ("just text", Malformed(reason="no_action")),
        ("<search> never closed", Malformed(reason="no_action")),
    ],
)
def test_parse_action(text: str, action: object) -> None:
    assert parse_action(text) == action


@pytest.mark.parametrize("tags", ["special", "text"])
@pytest.mark.parametrize("query", ["capital of Andorra", "é river", "Zürich — 東京", "a"])
def test_query_tokens_lie_wholly_inside_the_tags(tags: str, query: str) -> None:
    tokenizer = make_tokenizer(tags)
    text = f"<think> state </think><search> {query} </search>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    generation = make_generation(tokenizer, ids, [0.0] * len(ids), "search_closed")
    inside = decode(tokenizer, [ids[i] for i in generation.query_positions])
    assert inside.strip() == query
    assert generation.query_positions == tuple(range(generation.query_positions[0], generation.query_positions[-1] + 1))


def test_a_token_that_straddles_a_tag_is_not_a_query_token() -> None:
    tokenizer = make_tokenizer("text")
    # As a byte-level BPE does, the pieces of the tags merge with what stands beside them: ">x" is drawn by hand.
    vocabulary = tokenizer.get_vocab()
    pieces = ["<", "s", "e", "a", "r", "c", "h", ">", "r", "i", "v", "e", "r", "<", "/", "s", "e", "a", "r", "c", "h"]
    ids = [vocabulary[piece] for piece in [*pieces, ">"]]
    generation = make_generation(tokenizer, ids, [0.0] * len(ids), "search_closed")
    assert generation.query_positions == (8, 9, 10, 11, 12)
    tokenizer = make_tokenizer("text").__class__(
        tokenizer_object=make_tokenizer("text").backend_tokenizer, pad_token="<pad>", eos_token="<|end|>"
    )
    tokenizer.add_tokens([">riv", "er</"])
    vocabulary = tokenizer.get_vocab()
    merged = ["<", "s", "e", "a", "r", "c", "h", ">riv", "e", "r", "er</", "s", "e", "a", "r", "c", "h", ">"]
    ids = [vocabulary[piece] for piece in merged]
    generation = make_generation(tokenizer, ids, [0.0] * len(ids), "search_closed")
    assert generation.text == "<search>riverer</search>"
    assert generation.query_positions == (8, 9)


def test_spans_of_split_characters() -> None:
    tokenizer = make_tokenizer()
    text = "a東b"
    ids = tokenizer.encode(text, add_special_tokens=False)
    spans = token_char_spans(tokenizer, ids)
    assert len(spans) == len(ids)
    assert spans[0] == (0, 1)
    assert spans[-1] == (2, 3)
    assert all(span == (1, 2) for span in spans[1:-1])


def test_sampled_ids_are_kept_as_sampled() -> None:
    tokenizer = make_tokenizer()
    letters = [tokenizer.get_vocab()[letter] for letter in "river"]
    assert tokenizer.encode("river", add_special_tokens=False) != letters, "the canonical encoding differs"
    generation = make_generation(tokenizer, letters, [-1.0] * 5, "length")
    assert generation.token_ids == tuple(letters)
