"""Teacher-student divergences over a truncated support (paper, section 3.3).

Shapes: `Q` distilled positions, `V` vocabulary, `K` support, `C` compared outcomes (K, or K + 1 with the tail).
All logs are natural, so the Jensen-Shannon divergence is at most ln 2.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Literal, assert_never

import torch
from torch import Tensor

from schemas.base import Section
from schemas.settings.root import DistillationSettings
from sdsearch.plugins import PluginError, open_plugin

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
    match tail:
        case "renormalise":
            return support_QK - support_QK.logsumexp(dim=1, keepdim=True)
        case "bucket":
            outside_QV = logprobs_QV.scatter(1, ids_QK, -torch.inf)
            return torch.cat([support_QK, outside_QV.logsumexp(dim=1, keepdim=True)], dim=1)
        case unknown:
            assert_never(unknown)


class Divergence(Section):
    """A divergence of the teacher from the student. A plugin derives from this class; its fields are its settings.

    A plain function of the same arguments serves too.
    """

    @abstractmethod
    def __call__(self, teacher_QC: Tensor, student_QC: Tensor) -> Tensor:
        """Return the divergence (Q,) of log-distributions over the same outcomes; gradients flow to the student."""


DivergenceFunction = Callable[[Tensor, Tensor], Tensor]


def jsd(teacher_QC: Tensor, student_QC: Tensor) -> Tensor:
    """Jensen-Shannon: half KL(P||M) plus half KL(Q||M), M = (P + Q) / 2, in nats (paper)."""
    # Probabilities first: gradients are summed in the order of these lines, and so keep their last bits.
    teacher_p_QC, student_p_QC = teacher_QC.exp(), student_QC.exp()
    mixture_QC = torch.logaddexp(teacher_QC, student_QC) - math.log(2)
    from_teacher_QC = teacher_p_QC * (teacher_QC - mixture_QC)
    from_student_QC = student_p_QC * (student_QC - mixture_QC)
    return 0.5 * (from_teacher_QC + from_student_QC).sum(dim=1)


def forward_kl(teacher_QC: Tensor, student_QC: Tensor) -> Tensor:
    """KL(teacher || student), in nats."""
    teacher_p_QC = teacher_QC.exp()
    return (teacher_p_QC * (teacher_QC - student_QC)).sum(dim=1)


def reverse_kl(teacher_QC: Tensor, student_QC: Tensor) -> Tensor:
    """KL(student || teacher), in nats."""
    student_p_QC = student_QC.exp()
    return (student_p_QC * (student_QC - teacher_QC)).sum(dim=1)


def mse(teacher_QC: Tensor, student_QC: Tensor) -> Tensor:
    """Squared difference of the probabilities, summed over the outcomes; no unit."""
    teacher_p_QC, student_p_QC = teacher_QC.exp(), student_QC.exp()
    return (teacher_p_QC - student_p_QC).square().sum(dim=1)


def divergence(teacher_QC: Tensor, student_QC: Tensor, kind: str) -> Tensor:
    """Return the divergence (Q,) of two log-distributions over the same outcomes, by its name in the settings."""
    return open_divergence(DistillationSettings(divergence=kind))(teacher_QC, student_QC)


def open_divergence(settings: DistillationSettings) -> DivergenceFunction:
    """Return the divergence that the settings name; PluginError where it cannot be used, or returns no (Q,) tensor."""
    measure: DivergenceFunction = open_plugin("divergence", settings.divergence, settings.divergence_options)

    def measured(teacher_QC: Tensor, student_QC: Tensor) -> Tensor:
        value_Q = measure(teacher_QC, student_QC)
        if not isinstance(value_Q, Tensor) or value_Q.shape != student_QC.shape[:1]:
            got = tuple(value_Q.shape) if isinstance(value_Q, Tensor) else type(value_Q).__name__
            raise PluginError(
                f"distillation.divergence '{settings.divergence}' returned {got} for {tuple(student_QC.shape)} "
                f"log-probabilities; expected a tensor of shape ({len(student_QC)},)"
            )
        return value_Q

    return measured


def try_divergence(settings: DistillationSettings) -> None:
    """Measure two small distributions; PluginError for a divergence of the wrong shape, or that cannot be trained."""
    teacher_QC = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).log()
    student_QC = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log().requires_grad_()
    with torch.enable_grad():
        value_Q = open_divergence(settings)(teacher_QC, student_QC)
        if not value_Q.requires_grad or not value_Q.isfinite().all():
            raise PluginError(
                f"distillation.divergence '{settings.divergence}' gave {value_Q.tolist()} without a gradient to the "
                "student, or not finite; expected finite numbers computed from student by torch"
            )


def entropy(logprobs_QV: Tensor) -> Tensor:
    """Return the entropy (Q,) of log-distributions, nats."""
    return -(logprobs_QV.exp() * logprobs_QV).sum(dim=1)
