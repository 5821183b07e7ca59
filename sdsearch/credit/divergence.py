"""Teacher-student divergences over a truncated support (paper, section 3.3).

Shapes: `Q` distilled positions, `V` vocabulary, `K` support, `C` compared outcomes (K, or K + 1 with the tail).
All logs are natural, so the Jensen-Shannon divergence is at most ln 2.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["jsd", "forward_kl", "reverse_kl", "mse"]
Tail = Literal["bucket", "renormalise"]


def truncate(logprobs_QV: Tensor, ids_QK: Tensor, tail: Tail) -> Tensor:
    """Return log-probabilities (Q, C) over the support `ids_QK` and what is outside it.

    bucket: one more outcome holds the remaining mass, summed over the tokens outside the support (not 1 minus the
    support, which loses all digits when the tail is small). renormalise: the support alone, scaled to sum to 1.
    A support that is the whole vocabulary has no tail: the distribution itself is returned, in the order of the ids.
    """
    support_QK = logprobs_QV.gather(1, ids_QK)
    if ids_QK.shape[1] == logprobs_QV.shape[1]:
        return support_QK
    if tail == "renormalise":
        return support_QK - support_QK.logsumexp(dim=1, keepdim=True)
    outside_QV = logprobs_QV.scatter(1, ids_QK, -torch.inf)
    return torch.cat([support_QK, outside_QV.logsumexp(dim=1, keepdim=True)], dim=1)


def divergence(teacher_QC: Tensor, student_QC: Tensor, kind: Divergence) -> Tensor:
    """Return the divergence (Q,) of two log-distributions over the same outcomes, in nats (mse: no unit).

    jsd: half KL(P||M) plus half KL(Q||M), M = (P + Q) / 2; forward_kl: KL(teacher || student); reverse_kl:
    KL(student || teacher); mse: squared difference of the probabilities, summed over the outcomes.
    """
    teacher_p_QC, student_p_QC = teacher_QC.exp(), student_QC.exp()
    match kind:
        case "jsd":
            mixture_QC = torch.logaddexp(teacher_QC, student_QC) - math.log(2)
            from_teacher_QC = teacher_p_QC * (teacher_QC - mixture_QC)
            from_student_QC = student_p_QC * (student_QC - mixture_QC)
            return 0.5 * (from_teacher_QC + from_student_QC).sum(dim=1)
        case "forward_kl":
            return (teacher_p_QC * (teacher_QC - student_QC)).sum(dim=1)
        case "reverse_kl":
            return (student_p_QC * (student_QC - teacher_QC)).sum(dim=1)
        case "mse":
            return (teacher_p_QC - student_p_QC).square().sum(dim=1)


def entropy(logprobs_QV: Tensor) -> Tensor:
    """Return the entropy (Q,) of log-distributions, nats."""
    return -(logprobs_QV.exp() * logprobs_QV).sum(dim=1)
