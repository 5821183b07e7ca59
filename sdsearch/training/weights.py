"""What each token counts in an optimiser step, fixed before the step is cut into micro-batches.

A loss is a sum of token losses times these weights, so micro-batches add up to the whole batch whatever their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, assert_never

Aggregation = Literal["token_mean", "sequence_mean", "constant"]


def policy_token_weights(num_tokens: Sequence[int], aggregation: Aggregation, constant_tokens: int) -> list[float]:
    """Return the weight of each sampled token of each rollout (one number a rollout).

    token_mean: 1 / all tokens of the step; sequence_mean: 1 / (rollouts x own tokens); constant: 1 / (rollouts x
    `constant_tokens`) (Dr. GRPO). A rollout of which no token counts, 0, has weight 0 and is not counted.
    """
    num_rollouts = sum(1 for count in num_tokens if count)
    match aggregation:
        case "token_mean":
            return [1 / sum(num_tokens) if count else 0.0 for count in num_tokens]
        case "sequence_mean":
            return [1 / (num_rollouts * count) if count else 0.0 for count in num_tokens]
        case "constant":
            return [1 / (num_rollouts * constant_tokens) if count else 0.0 for count in num_tokens]
        case unknown:
            assert_never(unknown)


def distillation_token_weights(num_tokens: Sequence[int]) -> list[float]:
    """Return the weight of each distilled token: the mean over a rollout's, then over rollouts that have one."""
    num_distilled = sum(1 for count in num_tokens if count)
    return [1 / (num_distilled * count) if count else 0.0 for count in num_tokens]
