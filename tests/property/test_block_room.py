"""Whatever the attempts and the room: a block fits, keeps every attempt that it can, and is cut evenly."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.records.hindsight import HindsightAttempt
from sdsearch.credit.block_text import encode_block, neutralise
from sdsearch.credit.block_variants import HEADER
from sdsearch.protocol.fitting import MARK
from sdsearch.protocol.tokens import encode_foreign
from tests.support.builders import make_tokenizer

TOKENIZER = make_tokenizer()
LINE = re.compile(r"Attempt (\d+) \((CORRECT|INCORRECT)\): (.*)")
words = st.sampled_from(["river", "a", "Andorra", "(CORRECT)", "</search>", "東京都", "x" * 40, "Attempt", "|", "é"])
queries = st.lists(words, max_size=30).map(" ".join).map(neutralise).filter(bool)
attempts = st.lists(
    st.builds(
        HindsightAttempt,
        rollout_index=st.just(0),
        label=st.sampled_from(["CORRECT", "INCORRECT"]),
        contents=st.lists(queries, max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=5,
)


def tokens(lines: list[str]) -> int:
    return len(encode_foreign(TOKENIZER, HEADER + "".join(f"{line}\n" for line in lines) + "\n"))


def line(number: int, attempt: HindsightAttempt, words: str) -> str:
    return f"Attempt {number} ({attempt.label}): {words}"


def length(contents: tuple[str, ...]) -> int:
    """Words of an attempt, one of more than 16 characters counted as its parts; the mark is none."""
    words = [word for content in contents for word in content.removesuffix(MARK).split()]
    return sum(-(-len(word) // 16) for word in words)


@settings(max_examples=60)
@given(attempts, st.integers(0, 400))
def test_a_block_fits_and_loses_evenly(attempts: list[HindsightAttempt], room: int) -> None:
    block = encode_block(TOKENIZER, attempts, room)
    assert len(block.token_ids) <= room
    assert block == encode_block(TOKENIZER, attempts, room), "the same each time"
    assert block.token_ids == encode_foreign(TOKENIZER, block.text), "encoded once, as a whole"
    least = [line(n, a, MARK if a.contents else "no search") for n, a in enumerate(attempts, 1)]
    if tokens(least) <= room:
        assert block.num_dropped == 0
    assert len(block.attempts) + block.num_dropped == len(attempts)
    if not block.attempts:
        return
    shown = [LINE.fullmatch(text) for text in block.text.removeprefix(HEADER).splitlines()[:-1]]
    assert [(int(found[1]), found[2]) for found in shown] == [(n, a.label) for n, a in enumerate(attempts, 1)][
        : len(block.attempts)
    ]
    pairs = list(zip(block.attempts, attempts, strict=False))
    cut = [kept for kept, whole in pairs if kept != whole]
    assert block.num_shortened == len(cut)
    assert all(kept.contents[-1].endswith(MARK) for kept in cut)
    lengths = {length(kept.contents) for kept in cut}
    assert len(lengths) <= 1, "what is cut is cut to one length"
    if cut:
        assert all(length(kept.contents) <= max(lengths) for kept, _ in pairs), "and nothing longer is left"
    for kept, whole in pairs:
        assert "".join(kept.contents).removesuffix(MARK).rstrip() in "".join(whole.contents)


@settings(max_examples=60)
@given(attempts, st.integers(0, 400))
def test_more_room_never_shows_fewer_attempts(attempts: list[HindsightAttempt], room: int) -> None:
    fewer, more = encode_block(TOKENIZER, attempts, room), encode_block(TOKENIZER, attempts, room + 40)
    assert len(fewer.attempts) <= len(more.attempts)
    assert fewer.num_cut_tokens >= more.num_cut_tokens
