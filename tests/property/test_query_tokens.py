"""Query tokens against the bytes of the tokens, on a byte-level BPE of the GPT-2 and Qwen kind.

In such a tokenizer tags are plain text and merge with what stands beside them (`>q`, `?</`). The oracle knows each
token's bytes: a token is inside when its bytes are.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sdsearch.model.policy import load_tokenizer
from sdsearch.protocol.parsing import make_generation
from sdsearch.protocol.tokens import decode, token_char_spans

OPEN, CLOSE = b"<search>", b"</search>"
_WORDS = ["quiet", "river", "é", "東京", "Zürich?", "a", "q", "capital of Chad"]


@cache
def byte_level_bpe() -> PreTrainedTokenizerFast:
    """A BPE over bytes whose only word boundary is the blank, so that merges across tags exist."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "merged_with_next"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator([f"<search>{a}</search>\n<think>{a} {b}</think>" for a in _WORDS for b in _WORDS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|end|>", eos_token="<|end|>")


@cache
def bytes_of_tokens() -> dict[int, bytes]:
    """Each token's bytes, by the table of printable stand-ins that byte-level BPEs use (GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    stand_in = {chr(byte): byte for byte in printable}
    stand_in |= {chr(256 + n): byte for n, byte in enumerate(b for b in range(256) if b not in printable)}
    vocabulary = byte_level_bpe().get_vocab()
    return {i: bytes(stand_in[char] for char in token) for token, i in vocabulary.items() if token != "<|end|>"}


def inside_by_bytes(token_ids: list[int]) -> tuple[set[int], set[int]]:
    """Return (tokens whose bytes lie in the query, tokens that stand across one of its two ends)."""
    pieces = [bytes_of_tokens()[token] for token in token_ids]
    whole = b"".join(pieces)
    end = whole.find(CLOSE)
    start = whole.rfind(OPEN, 0, end) + len(OPEN)
    inside, across, at = set(), set(), 0
    for place, piece in enumerate(pieces):
        first, last = at, at + len(piece)
        at = last
        if start <= first and last <= end:
            inside.add(place)
        elif any(first < edge < last for edge in (start, end)):
            across.add(place)
    return inside, across


def positions_of(token_ids: list[int]) -> set[int]:
    generation = make_generation(byte_level_bpe(), token_ids, [0.0] * len(token_ids), "search_closed")
    assert generation.token_ids == tuple(token_ids)
    return set(generation.query_positions)


texts = st.lists(
    st.sampled_from([*_WORDS, " ", "?", "<", ">", "/", "\n", "<b>", "😀"]) | st.text(max_size=4), min_size=1
)


def test_merges_across_tags_exist() -> None:
    vocabulary = byte_level_bpe().get_vocab()
    assert any(">" in token and token[-1].isalnum() for token in vocabulary)
    ids = byte_level_bpe().encode("<search>quiet</search>", add_special_tokens=False)
    assert len(inside_by_bytes(ids)[1]) > 0, "no token stands across a tag's end; the test shows nothing"


@given(texts.map("".join).filter(lambda text: text.strip() and "search>" not in text), texts.map("".join))
@example("q", "")
@example("東京?", "é")
def test_encoded_queries(query: str, thought: str) -> None:
    tokenizer = byte_level_bpe()
    text = f"<think>{thought.replace('search>', '')}</think><search>{query}</search>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    inside, across = inside_by_bytes(ids)
    assert positions_of(ids) == inside
    assert not positions_of(ids) & across


@given(st.randoms(use_true_random=False), st.lists(st.integers(1, 339), max_size=6), st.booleans())
def test_sampled_tokens_need_not_be_how_the_text_would_be_encoded(draw: object, junk: list[int], broken: bool) -> None:
    """A policy may spell a tag in other pieces, and stop within a character."""
    by_bytes = {piece: token for token, piece in bytes_of_tokens().items()}
    text = b"<search>" + "é river 東京".encode() + (b"\xe6" if broken else b"") + b" q</search>"
    ids, at = [token for token in junk if b"search>" not in bytes_of_tokens()[token]], 0
    while at < len(text):
        choices = [piece for piece in by_bytes if text.startswith(piece, at)]
        piece = draw.choice(choices)
        ids.append(by_bytes[piece])
        at += len(piece)
    whole = b"".join(bytes_of_tokens()[token] for token in ids)
    if whole.count(b"search>") != 2:
        return
    inside, across = inside_by_bytes(ids)
    found = positions_of(ids)
    assert not found & across
    # What shares a broken character with its neighbours is left out when one of them is outside.
    assert found <= inside if broken else found == inside


@given(st.lists(st.integers(0, 339), max_size=12))
def test_spans_cover_the_text_in_order(token_ids: list[int]) -> None:
    tokenizer = byte_level_bpe()
    spans = token_char_spans(tokenizer, token_ids)
    assert len(spans) == len(token_ids)
    merged = sorted(set(spans))
    assert [start for start, _ in merged] == [0, *(end for _, end in merged)][: len(merged)]
    assert (merged[-1][1] if merged else 0) == len(decode(tokenizer, token_ids))


@pytest.mark.parametrize("query", ["capital of Andorra", "é — 東京", "a"])
def test_the_mini_policys_tags_are_tokens_of_their_own(query: str) -> None:
    tokenizer = load_tokenizer(str(files("sdsearch.world") / "mini"))
    ids = tokenizer.encode(f"<think> q </think><search> {query} </search>", add_special_tokens=False)
    generation = make_generation(tokenizer, ids, [0.0] * len(ids), "search_closed")
    first, last = ids.index(tokenizer.convert_tokens_to_ids("<search>")), len(ids) - 1
    assert decode(tokenizer, ids[last:]) == "</search>"
    assert set(generation.query_positions) <= set(range(first + 1, last))
    assert decode(tokenizer, [ids[place] for place in generation.query_positions]).strip() == query
