"""Sequences to batches and back; the only place that knows how tokens are laid out for a forward pass.

Rollouts of a group share their context (for the teacher the hindsight block too), so a batch is one row of trees:
each context once, then its continuations, without padding.
Shapes: `T` tokens of the row, `N` positions that a loss reads (over all sequences, in order), `D` width.
Logits at a position predict the next token: the hidden state read for token p is the one at p - 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdsearch.model.attention import run_trees
from sdsearch.model.policy import backbone, head
from sdsearch.model.visibility import Tree, TreeLayout


@dataclass(frozen=True)
class TokenSequence:
    """A context (prompt, with or without a block), what follows it, and which of the latter a loss reads."""

    context_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    reads: tuple[int, ...]  # offsets into token_ids, ascending

    def __post_init__(self) -> None:
        assert self.context_ids, "a token needs something before it to be predicted from"

    @property
    def num_continued(self) -> int:
        """Tokens after the context that a forward must see: nothing after the last read position matters to it."""
        return self.reads[-1] if self.reads else 0

    @property
    def num_tokens(self) -> int:
        """Tokens that a forward of this sequence alone must see."""
        return len(self.context_ids) + self.num_continued

    @property
    def targets(self) -> list[int]:
        return [self.token_ids[offset] for offset in self.reads]


@dataclass(frozen=True)
class TokenBatch:
    """A row of trees, and where in it the losses read."""

    input_ids_T: Tensor
    layout: TreeLayout
    places_N: Tensor  # where the hidden state stands that predicts each read token
    targets_N: Tensor

    @staticmethod
    def of(sequences: Sequence[TokenSequence], device: torch.device) -> TokenBatch:
        """Lay out sequences, those of one context as one tree; at least one of them must read a position."""
        tokens: list[int] = []
        trees: list[Tree] = []
        positions: list[list[int]] = [[] for _ in sequences]
        for members in _by_context(sequences, range(len(sequences))):
            context = sequences[members[0]].context_ids
            tokens += context
            last_of_context = len(tokens) - 1
            for index in members:
                sequence = sequences[index]
                before = len(tokens) - 1
                positions[index] = [before + offset if offset else last_of_context for offset in sequence.reads]
                tokens += sequence.token_ids[: sequence.num_continued]
            trees.append(Tree(len(context), tuple(sequences[index].num_continued for index in members)))
        return TokenBatch(
            torch.tensor(tokens, device=device),
            TreeLayout(tuple(trees)),
            torch.tensor([position for own in positions for position in own], device=device),
            torch.tensor([token for sequence in sequences for token in sequence.targets], device=device),
        )

    def hidden_at_reads(self, model: nn.Module) -> Tensor:
        """Run the backbone and return the hidden states (N, D) that predict the read tokens."""
        return run_trees(backbone(model), self.input_ids_T, self.layout)[self.places_N]


def idle_pass(model: nn.Module) -> Tensor:
    """Run one token through the whole model, and return a scalar whose gradient is zero.

    For a rank that has no micro-batch in a round: the others wait for it where sharded weights are gathered.
    """
    batch = TokenBatch.of([TokenSequence((0,), (0,), (0,))], next(model.parameters()).device)
    return head(model)(batch.hidden_at_reads(model)).float().sum() * 0


def microbatches(sequences: Sequence[TokenSequence], max_tokens: int) -> Iterator[list[int]]:
    """Yield indices of the sequences that read something, in batches of at most `max_tokens` tokens.

    Sequences of one context stay together, unless they are more than a batch holds. Largest first, so that an
    out-of-memory error comes at once; a sequence longer than the budget gets a batch of its own.
    """
    batch: list[int] = []
    room = 0
    for members in sorted(trees_of(sequences, max_tokens), key=lambda members: -_num_tokens(sequences, members)):
        needed = _num_tokens(sequences, members)
        if batch and needed > room:
            yield batch
            batch = []
        room = (room if batch else max_tokens) - needed
        batch += members
    if batch:
        yield batch


def trees_of(sequences: Sequence[TokenSequence], max_tokens: int) -> Iterator[list[int]]:
    """Yield indices of the sequences that read something, those of one context together as far as the budget goes."""
    reading = [index for index, sequence in enumerate(sequences) if sequence.reads]
    for members in _by_context(sequences, reading):
        yield from _split(sequences, members, max_tokens)


def _by_context(sequences: Sequence[TokenSequence], indices: Sequence[int]) -> list[list[int]]:
    """Return the indices by equal contexts, in order of first appearance."""
    members: dict[tuple[int, ...], list[int]] = {}
    for index in indices:
        members.setdefault(sequences[index].context_ids, []).append(index)
    return list(members.values())


def _split(sequences: Sequence[TokenSequence], members: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Cut a tree's sequences into trees of at most `max_tokens` tokens, each with the context."""
    part: list[int] = []
    for index in sorted(members, key=lambda index: -sequences[index].num_continued):
        if part and _num_tokens(sequences, [*part, index]) > max_tokens:
            yield part
            part = []
        part.append(index)
    yield part


def _num_tokens(sequences: Sequence[TokenSequence], members: Sequence[int]) -> int:
    """Tokens of one tree: the context once, then every continuation."""
    return len(sequences[members[0]].context_ids) + sum(sequences[index].num_continued for index in members)
