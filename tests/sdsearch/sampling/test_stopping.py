"""Where a turn ends: tags of any number of tokens, tags within a token, and what a model folder calls its ends."""

from __future__ import annotations

import pytest
from transformers import GenerationConfig

from schemas.records.rollout import Answer, Search
from sdsearch.protocol.parsing import make_generation, parse_action
from sdsearch.sampling.stopping import TurnEnds
from tests.support.builders import make_model, make_tokenizer
from tests.support.scripted import NO_TEXT, PIECES, Script, make_pieces_tokenizer

TOKENIZER = make_pieces_tokenizer()
ENDS = TurnEnds.of(Script(0, (), NO_TEXT + 1).model, TOKENIZER)


def pieces(*texts: str) -> tuple[int, ...]:
    return tuple(PIECES.index(text) for text in texts)


@pytest.mark.parametrize("num_between", [0, 14, 15, 16, 40])
@pytest.mark.parametrize("close", [("</sea", "rch>"), ("</", "answer", ">")])
def test_a_tag_ends_a_turn_whatever_stands_between_its_tokens(close: tuple[str, ...], num_between: int) -> None:
    first, *others = pieces(*close)
    turn = (*pieces("<search>", "a"), first, *[NO_TEXT] * num_between, *others)
    reason = "search_closed" if close[1] == "rch>" else "answer_closed"
    assert ENDS.first_end((*turn, *turn), 200) == (len(turn), reason)
    generation = make_generation(TOKENIZER, turn, [None] * len(turn), reason)
    assert ("</search>" if reason == "search_closed" else "</answer>") in generation.text


def test_every_token_may_be_a_byte() -> None:
    tokenizer = make_tokenizer("text")
    ends = TurnEnds.of(make_model(), tokenizer)
    turn = tuple(tokenizer.convert_tokens_to_ids(list("<search>a</search>")))
    assert ends.first_end((*turn, *turn), 200) == (len(turn), "search_closed")


@pytest.mark.parametrize(
    ("last", "reason", "action"),
    [("x</search></answer>", "search_closed", Search), ("x</answer></search>", "answer_closed", Answer)],
)
def test_of_two_tags_in_one_token_the_first_counts_as_it_does_for_the_action(
    last: str, reason: str, action: type
) -> None:
    tokenizer = make_tokenizer.__wrapped__("text")  # Not the one that other tests use.
    tokenizer.add_tokens([last])
    text = f"<{reason.removesuffix('_closed')}>{last}"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids[-1] == len(tokenizer) - 1, "the tags are one token"
    assert TurnEnds.of(make_model(), tokenizer).first_end(ids, 200) == (len(ids), reason)
    assert isinstance(parse_action(text), action)


@pytest.mark.parametrize("eos", [2, [2, 7], [7, 2]])
def test_all_ends_that_the_model_folder_names_end_a_turn(eos: int | list[int]) -> None:
    model = Script(0, (), NO_TEXT + 1).model
    model.generation_config = GenerationConfig(eos_token_id=eos)
    ends = TurnEnds.of(model, TOKENIZER)
    assert ends.end_ids == {TOKENIZER.eos_token_id, *(eos if isinstance(eos, list) else [eos])}
    for token in ends.end_ids:
        assert ends.first_end((token, 11, 11), 3) == (1, "end_of_turn")
    assert ends.first_end((11, 11, 11), 3) == (3, "length")
    assert ends.first_end((11, 11), 3) is None


def test_the_end_of_a_turn_comes_before_its_limit() -> None:
    assert ENDS.first_end(pieces("a", "</search>"), 2) == (2, "search_closed")
    assert ENDS.first_end(pieces("a", "<|stop|>"), 2) == (2, "end_of_turn")
