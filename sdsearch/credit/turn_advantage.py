"""The teacher's word as a weight of each turn's advantage, instead of a loss.

Shapes: `Q` the distilled tokens of one rollout, `N` sampled tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def turn_leanings(
    log_ratios: Sequence[float], gates: Sequence[float], turns: Sequence[int], num_turns: int
) -> tuple[float, ...]:
    """Return what the teacher says of each turn, in (-1, 1): tanh of the mean gated log-ratio of its distilled tokens.

    0 where a turn has none. Above 0 the teacher, who knows how the siblings ended, favours what was written.
    """
    of_turn: dict[int, list[float]] = {}
    for ratio, gate, turn in zip(log_ratios, gates, turns, strict=True):
        of_turn.setdefault(turn, []).append(gate * ratio)
    return tuple(
        math.tanh(sum(of_turn[turn]) / len(of_turn[turn])) if turn in of_turn else 0.0 for turn in range(num_turns)
    )


def leaned_advantage(advantage_N: Tensor, leaning_N: Tensor, reach: float) -> Tensor:
    """Return A + reach |A| leaning, (N,): each advantage between (1 - reach) and (1 + reach) times itself.

    What the teacher favours gains credit and is blamed less, what it rejects the other way round. The sign never
    turns, and an advantage of 0 stays 0: a group whose rewards are equal learns nothing. Source: AgentOPSD (arXiv
    2608.05987) and OPID (2606.26790), which bring the log-probability shift of a hindsight context into the advantage;
    ours are the mean over a turn's distilled tokens, tanh as the bound, and that all sampled tokens of the turn get it.
    """
    return advantage_N + min(reach, 1.0) * advantage_N.abs() * leaning_N
