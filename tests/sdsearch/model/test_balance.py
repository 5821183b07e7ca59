"""A pass cut for several ranks: nothing is lost or read twice, no batch is over the budget, no rank waits for long."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from sdsearch.model.balance import balanced_rounds, num_forwarded, pass_length
from sdsearch.model.batching import TokenSequence, microbatches


def sequence(context: int, prompt: int, length: int) -> TokenSequence:
    """A sequence that is read to its end; one of length 0 reads nothing."""
    return TokenSequence((context,) * prompt, (0,) * (length + 1), (length,) if length else ())


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 90)), max_size=40),
    st.integers(2, 8),
    st.integers(1, 200),
)
def test_each_sequence_is_in_one_batch_within_the_budget(
    drawn: list[tuple[int, int]], ranks: int, max_tokens: int
) -> None:
    sequences = [sequence(context, 5 + context, length) for context, length in drawn]
    rounds = balanced_rounds(sequences, max_tokens, ranks)
    batches = [batch for batches in rounds for batch in batches]
    assert all(len(batches) == ranks for batches in rounds)
    assert sorted(index for batch in batches for index in batch) == [i for i, s in enumerate(sequences) if s.reads]
    assert all(num_forwarded(sequences, batch) <= max_tokens or len(batch) == 1 for batch in batches)
    assert all(any(batches) for batches in rounds), "a round in which no rank has work is none"


def test_batches_of_a_round_are_about_as_long() -> None:
    draw = random.Random(0)
    sequences = [sequence(group, 300, draw.randint(200, 4000)) for group in range(51) for _ in range(5)]
    rounds = balanced_rounds(sequences, 16_384, 8)
    needed = sum(num_forwarded(sequences, batch) for batch in microbatches(sequences, 16_384))
    assert needed / (8 * pass_length(sequences, rounds)) >= 0.93


def test_one_long_sequence_keeps_the_other_ranks_company() -> None:
    assert balanced_rounds([sequence(0, 4, 500)], 100, 3) == [[[0], [], []]]
    assert balanced_rounds([], 100, 3) == []
