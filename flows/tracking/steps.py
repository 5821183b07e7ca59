"""What trackers get of an iteration: the numbers of its rows in the database, by their columns' names, and rollouts.

Nothing here lists metrics: a column that is added to `v_iterations` or to `evaluations` is tracked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from flows.tracking.ports import Message, Trace
from storage.database.sync import WAIT_S
from storage.errors import DatabaseBusyError, DatabaseUnusableError
from storage.storage import Storage

_ITERATIONS: Final = """
    SELECT * EXCLUDE (run) FROM v_iterations
    WHERE run = $run AND iteration BETWEEN $first AND $last ORDER BY iteration
"""
_EVALUATIONS: Final = """
    SELECT * EXCLUDE (run) FROM evaluations
    WHERE run = $run AND iteration BETWEEN $first AND $last ORDER BY ALL
"""
_KEYS: Final = ("iteration", "mode", "dataset", "split")
"""What tells the rows of `evaluations` apart, besides the run."""
_ROLLOUTS: Final = """
    WITH chosen AS (
        SELECT r.*, row_number() OVER (
            PARTITION BY r.iteration ORDER BY g.reward_std DESC, r.group_id, r.rollout_index
        ) AS place
        FROM v_rollouts AS r JOIN groups AS g USING (run, iteration, group_id)
        WHERE r.run = $run AND r.iteration BETWEEN $first AND $last
        QUALIFY place <= $num
    )
    SELECT
        c.iteration, c.rollout_id, c.question, c.answer, c.golden_answers, c.reward, c.advantage, c.em, c.f1, c.outcome,
        c.label, list({'text': t.text, 'reply': t.observation_text} ORDER BY t.turn) AS turns
    FROM chosen AS c JOIN turns AS t ON t.run = c.run AND t.iteration = c.iteration AND t.rollout_id = c.rollout_id
    GROUP BY ALL ORDER BY c.iteration, min(c.place)
"""
_LATEST: Final = 16
"""Of many iterations at once, as when a run is tracked from its middle on, the last ones bring rollouts."""


class Step(NamedTuple):
    """An iteration as trackers get it."""

    number: int
    values: dict[str, float]
    traces: tuple[Trace, ...] = ()


def read_steps(storage: Storage, run: str, first: int, last: int, num_rollouts: int) -> list[Step] | None:
    """Return the iterations of a run from `first` to `last` that have rows; None while the database cannot be had.

    num_rollouts: how many rollouts an iteration brings.
    """
    asked: dict[str, Any] = {"run": run, "first": first, "last": last}
    if not storage.sync.flush():
        return None
    try:
        values = {
            row["iteration"]: _numbers(row) for row in storage.database.query(_ITERATIONS, asked, WAIT_S).to_pylist()
        }
        for row in storage.database.query(_EVALUATIONS, asked, WAIT_S).to_pylist():
            values.setdefault(row["iteration"], {"iteration": float(row["iteration"])}).update(_evaluated(row))
        traces = _read_traces(storage, {**asked, "first": max(first, last - _LATEST + 1)}, num_rollouts)
    except (DatabaseBusyError, DatabaseUnusableError):
        return None  # Whoever is asked for the rows next time gets these too; storage has said why.
    return [Step(number, values[number], tuple(traces.get(number, ()))) for number in sorted(values)]


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the columns of a row that are finite numbers."""
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _evaluated(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of an evaluation: `evaluations/DATASET/SPLIT/MODE/COLUMN`."""
    place = f"evaluations/{row['dataset']}/{row['split']}/{row['mode']}"
    return {f"{place}/{name}": value for name, value in _numbers(row).items() if name not in _KEYS}


def _read_traces(storage: Storage, asked: Mapping[str, Any], num_rollouts: int) -> dict[int, list[Trace]]:
    if not num_rollouts:
        return {}
    traces: dict[int, list[Trace]] = {}
    for row in storage.database.query(_ROLLOUTS, {**asked, "num": num_rollouts}, WAIT_S).to_pylist():
        traces.setdefault(row["iteration"], []).append(_trace(row))
    return traces


def _trace(row: Mapping[str, Any]) -> Trace:
    messages = [Message(role="user", content=row["question"] or "")]
    for turn in row["turns"]:
        messages.append(Message(role="assistant", content=turn["text"]))
        if turn["reply"] is not None:
            messages.append(Message(role="tool", content=turn["reply"]))
    facts = {name: row[name] for name in ("question", "answer", "reward", "advantage", "em", "f1", "outcome", "label")}
    facts["golden_answers"] = " | ".join(row["golden_answers"] or ())
    return Trace(rollout_id=row["rollout_id"], messages=tuple(messages), facts=facts)
