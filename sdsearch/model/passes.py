"""Forward passes over many sequences, in micro-batches; several ranks each pass over their own, in step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sdsearch.model.batching import TokenBatch, TokenSequence, idle_pass, microbatches
from sdsearch.model.ranks import in_step
from sdsearch.model.sharding import together


def hidden_by_sequence(model: nn.Module, sequences: Sequence[TokenSequence], max_tokens: int) -> list[Tensor]:
    """Return the hidden states (N, D) of each sequence's read positions; all ranks call it, each with its own."""
    hidden: list[Tensor] = [torch.empty(0)] * len(sequences)
    device = next(model.parameters()).device
    for members in in_step(list(microbatches(sequences, max_tokens))):
        if members is None:
            together(model, partial(idle_pass, model))
            continue
        batch = TokenBatch.of([sequences[i] for i in members], device)
        hidden_ND = together(model, partial(batch.hidden_at_reads, model))
        parts = hidden_ND.split([len(sequences[i].reads) for i in members])
        for index, part in zip(members, parts, strict=True):
            hidden[index] = part
    return hidden
