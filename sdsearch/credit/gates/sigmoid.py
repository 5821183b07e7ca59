"""The gate of SDAR."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sdsearch.credit.gates.ports import Gate, GatedTokens


class Sigmoid(Gate):
    """sigmoid(sharpness * log-ratio) of each token: what the teacher favours is distilled more than what it rejects.

    Source: SDAR (arXiv 2605.15155), which maps the detached gap of both log-probabilities through a sigmoid. Here it
    weighs the divergence, where SDAR weighs its own token loss; our choice is the sharpness, and that the weights are
    not brought back to a mean of one.
    """

    sharpness: float = Field(
        default=1.0, gt=0, description="Steepness: at the log-ratio 0 the weight is a half (ours)."
    )

    def __call__(self, tokens: GatedTokens) -> Tensor:
        """Return the weights (Q,)."""
        return torch.sigmoid(self.sharpness * tokens.log_ratio_Q)
