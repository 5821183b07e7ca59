"""Sequences to batches and back; the only place that knows how tokens are laid out for a forward pass.

Shapes: `B` sequences, `T` tokens, `N` positions that a loss reads (over all sequences, in order), `D` width.
Logits at a position predict the next token: the hidden state read for token p is the one at p - 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdsearch.policy import backbone


@dataclass(frozen=True)
class TokenSequence:
    """A context (prompt, with or without a block), what follows it, and which of the latter a loss reads."""

    context_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    reads: tuple[int, ...]  # offsets into token_ids, ascending

    def __post_init__(self) -> None:
        assert self.context_ids, "a token needs something before it to be predicted from"

    @property
    def num_tokens(self) -> int:
        """Tokens that a forward must see: nothing after the last read position matters to it."""
        return len(self.context_ids) + (self.reads[-1] if self.reads else 0)

    @property
    def input_ids(self) -> tuple[int, ...]:
        return (*self.context_ids, *self.token_ids)[: self.num_tokens]

    @property
    def targets(self) -> list[int]:
        return [self.token_ids[offset] for offset in self.reads]


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded sequences; what is padding is known by length, never by the pad id."""

    input_ids_BT: Tensor
    read_rows_N: Tensor
    read_columns_N: Tensor
    targets_N: Tensor

    @staticmethod
    def of(sequences: Sequence[TokenSequence], device: torch.device) -> TokenBatch:
        """Lay out sequences; at least one of them must read a position."""
        lengths = [sequence.num_tokens for sequence in sequences]
        input_ids_BT = torch.zeros(len(sequences), max(lengths), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            input_ids_BT[row, : lengths[row]] = torch.tensor(sequence.input_ids)
        rows = [row for row, sequence in enumerate(sequences) for _ in sequence.reads]
        columns = [len(sequence.context_ids) + offset - 1 for sequence in sequences for offset in sequence.reads]
        targets = [token for sequence in sequences for token in sequence.targets]
        return TokenBatch(
            input_ids_BT.to(device),
            torch.tensor(rows, device=device),
            torch.tensor(columns, device=device),
            torch.tensor(targets, device=device),
        )

    def hidden_at_reads(self, model: nn.Module) -> Tensor:
        """Run the backbone and return the hidden states (N, D) that predict the read tokens.

        No mask is needed: padding stands on the right, where causal attention never looks from a real token.
        """
        output = backbone(model)(input_ids=self.input_ids_BT, use_cache=False)
        return output.last_hidden_state[self.read_rows_N, self.read_columns_N]


def microbatches(sequences: Sequence[TokenSequence], max_tokens: int) -> Iterable[list[int]]:
    """Yield indices of the sequences that read something, in batches of at most `max_tokens` padded tokens.

    Longest first, so that a batch's rows have similar lengths and an out-of-memory error comes at once; a
    sequence longer than the budget gets a batch of its own.
    """
    order = sorted((i for i, s in enumerate(sequences) if s.reads), key=lambda i: -sequences[i].num_tokens)
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * sequences[batch[0]].num_tokens > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
