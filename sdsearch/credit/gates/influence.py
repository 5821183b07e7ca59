"""The gate by the block's influence."""

from __future__ import annotations

import torch
from torch import Tensor

from sdsearch.credit.gates.ports import GatedTokens


def influence(tokens: GatedTokens) -> Tensor:
    """Each token by how much the block changes its distribution: d / (d + mean d), d its Jensen-Shannon divergence.

    Source: the idea of ICSD (arXiv 2608.14945), to distil where the privileged context has influence. The form is
    ours: the divergence as the influence, the mean of the rollout's distilled tokens as the scale, so that a token of
    mean influence has a half, and none that the block leaves as it was has any. A rollout without influence has zeros.
    """
    jsd_Q = tokens.jsd_Q.clamp(min=0.0)  # Rounding may leave -1e-9.
    mean = jsd_Q.mean()
    return jsd_Q / (jsd_Q + mean) if float(mean) > 0 else torch.zeros_like(jsd_Q)
