"""What the update reads of each rollout, put together from the records of the stages before it."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.records.retry import RetriedGroup
from schemas.records.rollout import Group, Rollout
from schemas.records.score import Score
from schemas.records.teacher import TeacherTargets
from schemas.settings.root import RetriesUse
from sdsearch.credit.positions import turn_of_position
from sdsearch.credit.teacher import TargetTensors
from sdsearch.model.batching import TokenSequence
from sdsearch.training.loss import TrainingRollout


def training_rollouts(
    groups: Sequence[Group],
    scores: Sequence[Score],
    pointers: Sequence[TeacherTargets],
    tensors: TargetTensors,
    retried: Sequence[RetriedGroup] = (),
    use: RetriesUse = "off_policy",
) -> list[TrainingRollout]:
    """Return the training rollouts in sampling order; a rollout without a pointer is not distilled.

    retried: the retries, which follow their siblings and are for `use`; `scores` holds theirs too. All are read after
    the plain prompt: the student never sees the block.
    """
    score_of = {score.rollout_id: score for score in scores}
    pointer_of = {pointer.rollout_id: pointer for pointer in pointers}
    retries_of = {each.group_id: each.rollouts for each in retried}
    return [
        _training_rollout(group, rollout, score_of[rollout.id], pointer_of.get(rollout.id), tensors, retry)
        for group in groups
        for siblings, retry in ((group.rollouts, None), (retries_of.get(group.id, ()), use))
        for rollout in siblings
    ]


def _training_rollout(
    group: Group,
    rollout: Rollout,
    score: Score,
    pointer: TeacherTargets | None,
    tensors: TargetTensors,
    retry: RetriesUse | None,
) -> TrainingRollout:
    rows = slice(pointer.row_start, pointer.row_start + pointer.num_rows) if pointer else slice(0)
    return TrainingRollout(
        rollout_id=rollout.id,
        sequence=TokenSequence(group.prompt_token_ids, rollout.token_ids, rollout.completion_positions),
        sampled_logprobs=rollout.sampled_logprobs,
        advantage=score.advantage,
        distilled=pointer.positions if pointer else (),
        ids_QK=tensors.ids_QK[rows],
        teacher_QC=tensors.teacher_QC[rows],
        gates=pointer.gates if pointer else (),
        leanings=_leanings(rollout, pointer),
        turn_advantages=_of_turns(rollout, score.turn_advantages),
        retry=retry,
        in_policy_loss=not (score.filtered or retry == "distillation"),
        is_replacement=group.replacement > 0,
    )


def _leanings(rollout: Rollout, pointer: TeacherTargets | None) -> tuple[float, ...]:
    """Return what the teacher says of the turn of each sampled token; empty where it says nothing."""
    if pointer is None or not any(pointer.turn_leanings):
        return ()
    return _of_turns(rollout, pointer.turn_leanings)


def _of_turns(rollout: Rollout, values: Sequence[float]) -> tuple[float, ...]:
    """Return for each sampled token the value of its turn; empty where turns have none."""
    turn_of = turn_of_position(rollout) if values else []
    return tuple(values[turn_of[position]] for position in rollout.completion_positions) if values else ()
