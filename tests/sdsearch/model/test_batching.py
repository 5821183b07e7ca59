"""What stands together in a micro-batch."""

from __future__ import annotations

import random

import pytest
import torch

from sdsearch.model.batching import TokenBatch, TokenSequence, microbatches


def ragged(seed: int, num_groups: int = 4) -> list[TokenSequence]:
    """Sequences of some groups, in drawn order; one that nothing reads in each."""
    draw = random.Random(seed)
    sequences = []
    for group in range(num_groups):
        context = (group, *draw.choices(range(100), k=draw.randrange(30)))
        sequences.append(TokenSequence(context, (1, 2, 3), ()))
        for _ in range(draw.randrange(1, 6)):
            tokens = tuple(draw.choices(range(100), k=draw.randrange(1, 60)))
            reads = sorted(draw.sample(range(len(tokens)), draw.randrange(1, len(tokens) + 1)))
            sequences.append(TokenSequence(context, tokens, tuple(reads)))
    draw.shuffle(sequences)
    return sequences


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [1, 70, 150, 400, 100_000])
def test_each_sequence_that_is_read_stands_in_one_batch_within_the_budget(seed: int, budget: int) -> None:
    sequences = ragged(seed)
    batches = list(microbatches(sequences, budget))
    read = [index for index, sequence in enumerate(sequences) if sequence.reads]
    assert sorted(index for batch in batches for index in batch) == read
    rows = [TokenBatch.of([sequences[index] for index in batch], torch.device("cpu")) for batch in batches]
    for batch, row in zip(batches, rows, strict=True):
        assert len(batch) == 1 or len(row.input_ids_T) <= budget
        assert len(row.layout.trees) == len({sequences[index].context_ids for index in batch})
    if budget == 1:
        assert len(batches) == len(read), "what is larger than the budget stands alone"
    if budget == 100_000:
        assert len(batches) == 1
