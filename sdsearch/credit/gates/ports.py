"""What a gate is, and from its name in the settings to the one that is used.

Shapes: `Q` the distilled tokens of one rollout, in order.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.base import Section
from schemas.settings.root import DistillationSettings
from sdsearch.plugins import PluginError, open_plugin


@dataclass(frozen=True)
class GatedTokens:
    """What a gate sees of a rollout's distilled tokens, at the weights that sampled; float64."""

    log_ratio_Q: Tensor  # log teacher - log student of the sampled token, nats
    jsd_Q: Tensor  # exact Jensen-Shannon divergence of teacher and student, nats
    turn_Q: Tensor  # int64, the token's turn
    is_correct: bool  # the rollout's outcome: the metric of its answer exceeds rho


class Gate(Section):
    """How much of each distilled token is distilled. A plugin derives from this class; its fields are its settings.

    A plain function of the same argument serves too.
    """

    @abstractmethod
    def __call__(self, tokens: GatedTokens) -> Tensor:
        """Return a weight (Q,) in [0, 1]; it is a constant of the loss, no gradient goes through it."""


GateFunction = Callable[[GatedTokens], Tensor]


def everything(tokens: GatedTokens) -> Tensor:
    """Every token whole (paper)."""
    return torch.ones_like(tokens.log_ratio_Q)


def open_gate(settings: DistillationSettings) -> GateFunction:
    """Return the gate that the settings name; PluginError where it cannot be used, or gives no weights in [0, 1]."""
    gate: GateFunction = open_plugin("gate", settings.gate, settings.gate_options)

    def gated(tokens: GatedTokens) -> Tensor:
        weight_Q = gate(tokens)
        expected = tokens.log_ratio_Q.shape
        if not isinstance(weight_Q, Tensor) or weight_Q.shape != expected:
            got = tuple(weight_Q.shape) if isinstance(weight_Q, Tensor) else type(weight_Q).__name__
            raise PluginError(
                f"distillation.gate '{settings.gate}' returned {got} for {len(tokens.log_ratio_Q)} tokens; expected a "
                f"tensor of shape {tuple(expected)}"
            )
        if not bool(((weight_Q >= 0) & (weight_Q <= 1)).all()):
            raise PluginError(
                f"distillation.gate '{settings.gate}' gave {weight_Q.tolist()}; expected weights from 0 to 1"
            )
        return weight_Q.double()

    return gated


def try_gate(settings: DistillationSettings) -> None:
    """Weigh the tokens of two small rollouts; PluginError as of `open_gate`."""
    for is_correct in (True, False):
        ratios, divergences = torch.tensor([0.5, -0.2, 3.0]).double(), torch.tensor([0.1, 0.0, 0.5]).double()
        open_gate(settings)(GatedTokens(ratios, divergences, torch.tensor([0, 0, 1]), is_correct))
