"""A run's rollouts as data for others: a table, and conversations as chat models are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from flows.console.errors import UserError
from schemas.records.conversation import Conversation, Message, SaidTurn
from schemas.records.ledger import StageKey
from schemas.records.rollout import Group, Rollout
from storage.database.stage_rows import file_of
from storage.disk.folders import build_folder
from storage.disk.tables import write_jsonl_atomic, write_table_atomic
from storage.storage import Storage

_ROLLOUTS: Final = """
    SELECT r.*, q.question, q.golden_answers
    FROM rollouts AS r JOIN questions AS q USING (run, question_key)
    WHERE r.run = $run ORDER BY r.iteration, r.rollout_id
"""
_EARNED: Final = ("em", "f1", "reward", "advantage", "outcome", "answer", "golden_answers")


def export_rollouts(storage: Storage, run: str, folder: Path) -> int:
    """Write rollouts.parquet and conversations.jsonl and return the number of rollouts; UserError where there are none.

    A conversation has the question as the user's message, each generation as the assistant's and each reply of the
    environment as a tool's, special tokens kept, with what each turn meant and found and what the rollout earned.
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
            row = earned[rollout.id]
            conversation = Conversation(
                messages=tuple(_messages(group, rollout)),
                turns=tuple(SaidTurn.of(turn) for turn in rollout.turns),
                **{name: row[name] for name in _EARNED},
                question_key=group.question.key,
                run=run,
                iteration=iteration,
                group_id=group.id,
                rollout_id=rollout.id,
            )
            yield conversation.model_dump(mode="json")


def _messages(group: Group, rollout: Rollout) -> Iterator[Message]:
    yield Message(role="user", content=group.question.question)
    for turn in rollout.turns:
        yield Message(role="assistant", content=turn.generation.text)
        if turn.observation is not None:
            yield Message(role="tool", content=turn.observation.text)
