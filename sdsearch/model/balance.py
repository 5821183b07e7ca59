"""A pass over many sequences, cut for several ranks: rounds of one micro-batch a rank, those of a round equally long.

The ranks gather each layer's weights together, so that a round takes as long as its longest micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sdsearch.model.batching import TokenSequence, microbatches, trees_of
from sdsearch.model.ranks import num_ranks, rank

Round = list[list[int]]
"""A micro-batch a rank, as indices of sequences; an empty one for a rank that only keeps the others company."""

_CUTS: Final = (1, 2, 4, 8)  # Into how many parts a full micro-batch's tree may be cut, where that shortens the pass.


def own_batches(sequences: Sequence[TokenSequence], max_tokens: int) -> list[list[int] | None]:
    """Return this rank's micro-batches of a pass, None for a round in which only others have one.

    With one rank they are `microbatches`. Otherwise every rank has all sequences, and cuts them as the others do.
    """
    if num_ranks() == 1:
        return list(microbatches(sequences, max_tokens))
    return [batches[rank()] or None for batches in balanced_rounds(sequences, max_tokens, num_ranks())]


def own_sequences(sequences: Sequence[TokenSequence], max_tokens: int) -> list[int]:
    """Return the indices of the sequences that are this rank's, ascending; with one rank those that read something."""
    batches = own_batches(sequences, max_tokens)
    return sorted(index for batch in batches for index in batch or ())


def balanced_rounds(sequences: Sequence[TokenSequence], max_tokens: int, ranks: int) -> list[Round]:
    """Cut the sequences that read something into rounds of `ranks` micro-batches of at most `max_tokens` tokens.

    Longest first, each to the batch that is then the shortest (LPT), over a multiple of `ranks` batches. Siblings are
    divided, and their context forwarded more than once, where the whole pass is shorter so. A sequence longer than the
    budget gets a batch of its own.
    """
    found: list[Round] = []
    for cut in _CUTS:
        rounds = _rounds(sequences, [*trees_of(sequences, max(1, max_tokens // cut))], max_tokens, ranks)
        if not found or pass_length(sequences, rounds) < pass_length(sequences, found):
            found = rounds
    return found


def waiting_share(sequences: Sequence[TokenSequence], max_tokens: int) -> float | None:
    """Return which share of a pass the ranks wait for one another, counted in tokens; None with one rank."""
    if num_ranks() == 1:
        return None
    rounds = balanced_rounds(sequences, max_tokens, num_ranks())
    length = pass_length(sequences, rounds)
    forwarded = sum(num_forwarded(sequences, batch) for batches in rounds for batch in batches)
    return 1 - forwarded / (num_ranks() * length) if length else 0.0


def num_forwarded(sequences: Sequence[TokenSequence], batch: Sequence[int]) -> int:
    """Return the tokens of a micro-batch: each context once, then every continuation."""
    contexts = {sequences[index].context_ids for index in batch}
    return sum(map(len, contexts)) + sum(sequences[index].num_continued for index in batch)


def pass_length(sequences: Sequence[TokenSequence], rounds: Sequence[Round]) -> int:
    """Return how long a pass takes, in tokens: the longest micro-batch of each round."""
    return sum(max(num_forwarded(sequences, batch) for batch in batches) for batches in rounds)


@dataclass
class _Batch:
    members: list[int] = field(default_factory=list)
    contexts: set[tuple[int, ...]] = field(default_factory=set)
    num_tokens: int = 0

    def with_part(self, sequences: Sequence[TokenSequence], part: Sequence[int]) -> int:
        """Return the tokens that it would have with one more part of a tree."""
        context = sequences[part[0]].context_ids
        added = sum(sequences[index].num_continued for index in part)
        return self.num_tokens + added + (0 if context in self.contexts else len(context))

    def add(self, sequences: Sequence[TokenSequence], part: Sequence[int]) -> None:
        self.num_tokens = self.with_part(sequences, part)
        self.contexts.add(sequences[part[0]].context_ids)
        self.members += part


def _rounds(sequences: Sequence[TokenSequence], parts: list[list[int]], max_tokens: int, ranks: int) -> list[Round]:
    parts = sorted(parts, key=lambda part: -num_forwarded(sequences, part))
    needed = sum(num_forwarded(sequences, part) for part in parts)
    num_rounds = -(-needed // (max_tokens * ranks))
    batches = _packed(sequences, parts, num_rounds * ranks)
    while any(batch.num_tokens > max_tokens and len(batch.members) > 1 for batch in batches):
        if num_rounds * ranks >= len(parts):
            batches = [_Batch() for _ in range(-(-len(parts) // ranks) * ranks)]
            for batch, part in zip(batches, parts, strict=False):
                batch.add(sequences, part)
            break
        num_rounds += 1
        batches = _packed(sequences, parts, num_rounds * ranks)
    batches.sort(key=lambda batch: -batch.num_tokens)
    rounds = [[batch.members for batch in batches[start : start + ranks]] for start in range(0, len(batches), ranks)]
    return [round_ for round_ in rounds if any(round_)]


def _packed(sequences: Sequence[TokenSequence], parts: Sequence[list[int]], num_batches: int) -> list[_Batch]:
    batches = [_Batch() for _ in range(num_batches)]
    for part in parts:
        min(batches, key=lambda batch: batch.with_part(sequences, part)).add(sequences, part)
    return batches
