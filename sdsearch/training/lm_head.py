"""The LM head at the positions that a loss reads, in chunks; full (B, T, V) logits are never formed.

Shapes: `N` read positions, `Q` distilled positions among them, `V` vocabulary, `K` support, `D` width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdsearch.credit.divergence import DivergenceFunction, Tail, entropy, truncate
from sdsearch.model.policy import head, read_logprobs


@dataclass(frozen=True)
class DistillationTargets:
    """The teacher's side of L_SD at some of the read positions."""

    positions_Q: Tensor  # which of the N read positions
    ids_QK: Tensor
    teacher_QC: Tensor  # log-probabilities over the support and its tail
    measure: DivergenceFunction
    tail: Tail


@dataclass(frozen=True)
class TokenReadings:
    """What the losses need of each read position."""

    logprob_N: Tensor  # of the target token, with gradient
    entropy_N: Tensor  # without gradient
    divergence_Q: Tensor  # with gradient; empty without targets


def read_tokens(
    model: nn.Module,
    hidden_ND: Tensor,
    targets_N: Tensor,
    distillation: DistillationTargets | None,
    temperature: float,
    chunk: int,
) -> TokenReadings:
    """Return log-probability, entropy and divergence at the read positions, `chunk` of them at a time.

    With several chunks each one's logits are recomputed in the backward pass, so one chunk's exist at a time.
    """
    logits_fn = head(model)

    def read_chunk(
        hidden_nD: Tensor, targets_n: Tensor, places_q: Tensor, ids_qK: Tensor, teacher_qC: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        logprobs_nV = read_logprobs(logits_fn, hidden_nD, temperature)
        logprob_n = logprobs_nV.gather(1, targets_n[:, None])[:, 0]
        if distillation is None:
            return logprob_n, entropy(logprobs_nV.detach()), hidden_nD.new_zeros(0)
        student_qC = truncate(logprobs_nV[places_q], ids_qK, distillation.tail)
        return logprob_n, entropy(logprobs_nV.detach()), distillation.measure(teacher_qC, student_qC)

    pieces = []
    for start in range(0, len(targets_N), chunk):
        places_q, ids_qK, teacher_qC = _targets_between(distillation, start, start + chunk, targets_N)
        arguments = (hidden_ND[start : start + chunk], targets_N[start : start + chunk], places_q, ids_qK, teacher_qC)
        recompute = torch.is_grad_enabled() and len(targets_N) > chunk
        pieces.append(checkpoint(read_chunk, *arguments, use_reentrant=False) if recompute else read_chunk(*arguments))
    return TokenReadings(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))


def _targets_between(
    distillation: DistillationTargets | None, start: int, end: int, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if distillation is None:
        empty = like.new_zeros(0)
        return empty, empty, empty
    inside_Q = (distillation.positions_Q >= start) & (distillation.positions_Q < end)
    return distillation.positions_Q[inside_Q] - start, distillation.ids_QK[inside_Q], distillation.teacher_QC[inside_Q]
