"""What the update reads of each rollout, put together from the records of the stages before it."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.records.rollout import Group, Rollout
from schemas.records.score import Score
from schemas.records.teacher import TeacherTargets
from sdsearch.credit.positions import turn_of_position
from sdsearch.credit.teacher import TargetTensors
from sdsearch.model.batching import TokenSequence
from sdsearch.training.loss import TrainingRollout


def training_rollouts(
    groups: Sequence[Group],
    scores: Sequence[Score],
    pointers: Sequence[TeacherTargets],
    tensors: TargetTensors,
) -> list[TrainingRollout]:
    """Return the training rollouts in sampling order; a rollout without a pointer is not distilled."""
    advantage_of = {score.rollout_id: score.advantage for score in scores}
    pointer_of = {pointer.rollout_id: pointer for pointer in pointers}
    rollouts = []
    for group in groups:
        for rollout in group.rollouts:
            pointer = pointer_of.get(rollout.id)
            rows = slice(pointer.row_start, pointer.row_start + pointer.num_rows) if pointer else slice(0)
            rollouts.append(
                TrainingRollout(
                    rollout_id=rollout.id,
                    sequence=TokenSequence(group.prompt_token_ids, rollout.token_ids, rollout.completion_positions),
                    sampled_logprobs=rollout.sampled_logprobs,
                    advantage=advantage_of[rollout.id],
                    distilled=pointer.positions if pointer else (),
                    ids_QK=tensors.ids_QK[rows],
                    teacher_QC=tensors.teacher_QC[rows],
                    gates=pointer.gates if pointer else (),
                    leanings=_leanings(rollout, pointer),
                )
            )
    return rollouts


def _leanings(rollout: Rollout, pointer: TeacherTargets | None) -> tuple[float, ...]:
    """Return what the teacher says of the turn of each sampled token; empty where it says nothing."""
    if pointer is None or not any(pointer.turn_leanings):
        return ()
    turn_of = turn_of_position(rollout)
    return tuple(pointer.turn_leanings[turn_of[position]] for position in rollout.completion_positions)
