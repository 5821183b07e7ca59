"""A run's rollouts as data for others: a table, and conversations as chat models are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from flows.console.errors import UserError
from schemas.records.ledger import StageKey
from schemas.records.rollout import Group
from storage.database.stage_rows import file_of
from storage.disk.folders import build_folder
from storage.disk.tables import write_jsonl_atomic, write_table_atomic
from storage.storage import Storage

_ROLLOUTS: Final = """
    SELECT r.*, q.question, q.golden_answers
    FROM rollouts AS r JOIN questions AS q USING (run, question_key)
    WHERE r.run = $run ORDER BY r.iteration, r.rollout_id
"""


def export_rollouts(storage: Storage, run: str, folder: Path) -> int:
    """Write rollouts.parquet and conversations.jsonl and return the number of rollouts; UserError where there are none.

    A conversation has the question as the user's message, each generation as the assistant's and each reply of the
    environment as a tool's, special tokens kept, with what the rollout earned beside it.
    """
    record = storage.ledger.get_run(run)
    table = storage.database.query(_ROLLOUTS, {"run": record.run})
    if not table.num_rows:
        raise UserError(f"run '{run}' has no scored rollouts; see: sdsearch runs")
    earned = {row["rollout_id"]: row for row in table.to_pylist()}
    with build_folder(folder) as building:
        write_table_atomic(building.path / "rollouts.parquet", table, building.path)
        iterations = sorted({row["iteration"] for row in earned.values()})
        conversations = (each for number in iterations for each in _conversations(storage, run, number, earned))
        write_jsonl_atomic(building.path / "conversations.jsonl", conversations, building.path)
    return len(earned)


def _conversations(
    storage: Storage, run: str, iteration: int, earned: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    sampled = storage.ledger.done(StageKey(run=run, iteration=iteration, stage="sample"))
    assert sampled is not None, "what is scored was sampled"
    for group in storage.artifacts.read_records(file_of(sampled, "groups"), Group):
        for rollout in group.rollouts:
            messages = [{"role": "user", "content": group.question.question}]
            for turn in rollout.turns:
                messages.append({"role": "assistant", "content": turn.generation.text})
                if turn.observation is not None:
                    messages.append({"role": "tool", "content": turn.observation.text})
            row = earned[rollout.id]
            kept = ("em", "f1", "reward", "advantage", "outcome", "answer", "golden_answers")
            yield {
                "messages": messages,
                **{name: row[name] for name in kept},
                "question_key": group.question.key,
                "run": run,
                "iteration": iteration,
                "group_id": group.id,
                "rollout_id": rollout.id,
            }
