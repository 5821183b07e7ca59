"""The gate of SOD: less of the turns that have drifted away from the teacher."""

from __future__ import annotations

from torch import Tensor

from sdsearch.credit.gates.ports import GatedTokens


def attenuation(tokens: GatedTokens) -> Tensor:
    """Each turn by min(1, D_1 / D_k): D_k is its mean Jensen-Shannon divergence, D_1 that of the first distilled turn.

    Source: SOD (arXiv 2605.07725), which lowers the strength of steps where student and teacher diverge, and restores
    it where they are close again. Ours are the Jensen-Shannon divergence as the measure, the first turn as what is
    compared with, and the bound of one. A turn without divergence keeps all of its strength.
    """
    weight_Q = tokens.jsd_Q.clone()
    turns = tokens.turn_Q.unique(sorted=True).tolist()
    means = {turn: max(0.0, float(tokens.jsd_Q[tokens.turn_Q == turn].mean())) for turn in turns}
    first = means[turns[0]]
    for turn, mean in means.items():
        weight_Q[tokens.turn_Q == turn] = min(1.0, first / mean) if mean > 0 else 1.0
    return weight_Q
