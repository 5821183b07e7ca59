"""Which of a rollout's tokens are distilled, and whose turn each is."""

from __future__ import annotations

from schemas.records.rollout import Rollout


def distilled_positions(rollout: Rollout, positions: str, unsent_queries: str) -> tuple[int, ...]:
    """Return the offsets of the tokens that L_SD reads: the query tokens, or all sampled ones (ablation)."""
    match positions, unsent_queries:
        case "completion", _:
            return rollout.completion_positions
        case "query", "drop":
            return rollout.query_positions
        case "query", "keep":
            return rollout.written_query_positions
        case unknown:
            raise AssertionError(f"no such positions: {unknown}")


def turn_of_position(rollout: Rollout) -> list[int]:
    """Return for each token after the prompt the turn it belongs to."""
    turns = []
    for index, turn in enumerate(rollout.turns):
        turns.extend([index] * turn.num_tokens)
    return turns
