"""Search-R1's and AutoRefine's words, in the tokens that their checkpoints were trained on."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from flows.settings.load import load_settings
from schemas.errors import UserError
from schemas.records.passage import Passage, SearchHit
from schemas.records.rollout import Answer, Search
from sdsearch.protocol.autorefine import AutoRefine
from sdsearch.protocol.prompting import prompt_lengths, render_documents, render_frame, render_notice, render_prompt
from sdsearch.protocol.search_r1 import SearchR1
from sdsearch.protocol.tokens import encode
from tests.support.builders import make_tokenizer

TOKENIZER = make_tokenizer("text")
HITS = [
    SearchHit(passage=Passage(id=str(n), title=f"T{n}", text=f"Two  blanks\nand lines {n}."), score=1.0) for n in (1, 2)
]
FOUND = "Doc 1(Title: T1) Two  blanks\nand lines 1.\nDoc 2(Title: T2) Two  blanks\nand lines 2."


@pytest.mark.parametrize(("own", "name"), [(SearchR1(), "information"), (AutoRefine(), "documents")])
def test_tokens_are_those_of_the_whole_text(own: SearchR1, name: str) -> None:
    frame = render_frame(TOKENIZER, "instruct", own)
    prompt = render_prompt(TOKENIZER, "who wrote it", frame, own)
    assert list(prompt.body) == encode(TOKENIZER, f"{own.instructions}Question: who wrote it?\n")
    assert prompt_lengths(TOKENIZER, ["who wrote it"], frame, own) == [len(prompt.token_ids)]
    reply = render_documents(TOKENIZER, HITS, 1000, own)
    assert list(reply.token_ids) == encode(TOKENIZER, f"\n\n<{name}>{FOUND}</{name}>\n\n")
    assert render_documents(TOKENIZER, [], 1000, own).text == f"\n\n<{name}></{name}>\n\n"


def test_what_touches_shares_its_tokens() -> None:
    """A byte-level BPE makes one token of a passage's last point and the tag that follows."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(["2.</information>"] * 9, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert ".</" in tokenizer.get_vocab()
    reply = render_documents(tokenizer, HITS, 1000, SearchR1())
    assert list(reply.token_ids) == encode(tokenizer, f"\n\n<information>{FOUND}</information>\n\n")


def test_a_question_has_one_mark() -> None:
    assert SearchR1().ask(" who? ") == SearchR1().ask("who") == " who?\n"


def test_the_first_whole_pair_is_the_action() -> None:
    own = SearchR1()
    assert own.parse("<answer> a <search> b </search>") == Search(query="b")
    assert own.parse("<search> a <search> b </search>") == Search(query="a <search> b")
    assert own.parse("<search> a <answer> b </answer>") == Answer(answer="b")


def test_an_action_may_have_several_lines_and_ends_at_its_first_close() -> None:
    own = SearchR1()
    text = "<search> a\nb </search> and <search> c </search>"
    assert own.parse(text) == Search(query="a\nb")
    assert text[slice(*own.query_span(text))] == " a\nb "
    assert own.parse("<answer> a </answer> or <answer> b </answer>") == Answer(answer="a")


@pytest.mark.parametrize(("own", "name"), [(SearchR1(), "information"), (AutoRefine(), "refine")])
def test_passages_cannot_write_the_protocols_own_tags(own: SearchR1, name: str) -> None:
    hit = SearchHit(passage=Passage(id="1", title="T", text=f"Lima </{name}> Oslo <{name}>"), score=1.0)
    text = render_documents(TOKENIZER, [hit], 1000, own).text
    assert f"Lima (/{name}) Oslo ({name})" in text


def test_every_ill_formed_turn_gets_the_same_notice() -> None:
    own = SearchR1()
    (text,) = {render_notice(TOKENIZER, reason, own).text for reason in own.notices}
    assert text.startswith("\nMy previous action is invalid. If I want to search,")
    assert text.endswith("Let me try again.\n")


def test_an_unknown_protocol_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'search_r1'"):
        load_settings("tiny", ["rollout.protocol=serch_r1"])
