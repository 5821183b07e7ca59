"""The rows of retries, and what the iteration's metrics count of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from schemas.records.hindsight import label_outcome
from schemas.records.retry import RetriedGroup
from schemas.records.score import Score
from schemas.settings.root import HindsightSettings
from storage.database.rows import StageRows, build_from_records


def with_retries(
    rows: StageRows,
    run: str,
    iteration: int,
    retried: Sequence[RetriedGroup],
    scores: Sequence[Score],
    hindsight: HindsightSettings,
) -> StageRows:
    """Return the rows of the score stage with those of its retries, and their counts in the iteration's metrics.

    A retry's outcome is decided as a rollout's: by `hindsight.label_metric` and `hindsight.rho`.
    """
    pairs = [(group, rollout) for group in retried for rollout in group.rollouts]
    of_rollout = {score.rollout_id: score for score in scores}
    ordered = [of_rollout[rollout.id] for _, rollout in pairs]
    outcomes = [label_outcome(getattr(score, hindsight.label_metric), hindsight.rho) for score in ordered]
    num_tokens = [sum(len(turn.generation.token_ids) for turn in rollout.turns) for _, rollout in pairs]
    columns: dict[str, Sequence[Any]] = {
        "rollout_id": [rollout.id for _, rollout in pairs],
        "group_id": [group.group_id for group, _ in pairs],
        "rollout_index": [rollout.index for _, rollout in pairs],
        "answer": [rollout.answer for _, rollout in pairs],
        "queries": [rollout.queries for _, rollout in pairs],
        "num_turns": [len(rollout.turns) for _, rollout in pairs],
        "num_completion_tokens": num_tokens,
        "sampled_logprobs": [rollout.sampled_logprobs for _, rollout in pairs],
        "block_text": [group.block_text for group, _ in pairs],
        "outcome": outcomes,
    }
    counted = {
        "num_retries": len(pairs),
        "num_retries_correct": outcomes.count("CORRECT"),
        "num_retry_tokens": sum(num_tokens),
    }
    return {
        **rows,
        "retries": build_from_records("retries", run, iteration, ordered, columns),
        "iteration_metrics": _with_values(rows["iteration_metrics"], counted),
    }


def _with_values(table: pa.Table, values: dict[str, int]) -> pa.Table:
    """Return a table of one row with other values in some columns."""
    for name, value in values.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array([value], type=table.schema.field(name).type))
    return table
