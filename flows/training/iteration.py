"""One RL iteration: the paper's algorithm as six stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from flows.training import stages
from schemas.records.ledger import StageRecord

Stage = Callable[..., StageRecord]


class Stages(NamedTuple):
    """The six verbs; plain functions, or Prefect tasks over them."""

    sample_groups: Stage = stages.sample_groups
    score_rollouts: Stage = stages.score_rollouts
    build_hindsight: Stage = stages.build_hindsight
    compute_teacher: Stage = stages.compute_teacher
    update_weights: Stage = stages.update_weights
    evaluate_policy: Stage = stages.evaluate_policy


PLAIN = Stages()


def iterate(
    do: Stages, run: str, iteration: int, last_update: StageRecord | None, evaluation_is_due: bool
) -> StageRecord:
    """Turn the policy of the last update into the next one, and return the new update's record."""
    sampled = do.sample_groups(run, iteration, last_update)
    scored = do.score_rollouts(run, iteration, sampled)
    blocks = do.build_hindsight(run, iteration, sampled, scored)
    targets = do.compute_teacher(run, iteration, sampled, blocks)
    updated = do.update_weights(run, iteration, sampled, scored, targets)
    if evaluation_is_due:
        do.evaluate_policy(run, iteration, updated)
    return updated
