"""The plain layout to compare with: a padded row a rollout, prompt and all, as TRL's trainer forwards them.

Nothing is masked: rows are padded on the right and attention is causal, so no read position sees padding, and PyTorch
takes its flash kernel. Shapes: `B` rows, `T` longest row, `N` read positions, `D` width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from gpu_common import set_attention
from torch import Tensor, nn

from sdsearch.model.batching import TokenSequence
from sdsearch.model.policy import backbone


@dataclass(frozen=True)
class PaddedBatch:
    """What `TokenBatch` is, in the plain layout."""

    input_ids_BT: Tensor
    rows_N: Tensor
    places_N: Tensor
    targets_N: Tensor

    @staticmethod
    def of(sequences: Sequence[TokenSequence], device: torch.device) -> PaddedBatch:
        """Lay out sequences, each with its whole context."""
        rows = [[*sequence.context_ids, *sequence.token_ids[: sequence.num_continued]] for sequence in sequences]
        longest = max(map(len, rows))
        reads = [
            (row, len(sequence.context_ids) + offset - 1)
            for row, sequence in enumerate(sequences)
            for offset in sequence.reads
        ]
        return PaddedBatch(
            torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device),
            torch.tensor([row for row, _ in reads], device=device),
            torch.tensor([place for _, place in reads], device=device),
            torch.tensor([token for sequence in sequences for token in sequence.targets], device=device),
        )

    def hidden_at_reads(self, model: nn.Module) -> Tensor:
        """Run the backbone and return the hidden states (N, D) that predict the read tokens."""
        output = backbone(model)(input_ids=self.input_ids_BT, use_cache=False)
        return output.last_hidden_state[self.rows_N, self.places_N]


@contextmanager
def padded_rows(model: nn.Module) -> Iterator[None]:
    """Make the update lay its micro-batches out as padded rows, by transformers' own attention."""
    set_attention(model, "sdpa")
    with patch("sdsearch.training.loss.TokenBatch", PaddedBatch):
        yield
