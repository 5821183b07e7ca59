"""Stage teacher: the distributions of the policy that sampled, shown the hindsight blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flows.run.live import Runtime
from flows.run.perform import StageRunner
from flows.run.stage_files import StageFiles
from flows.run.stage_inputs import StageKind
from flows.training.stored_retries import retries_of
from flows.training.strength import strength_before
from schemas.records.hindsight import HindsightBlock
from schemas.records.ledger import ArtifactRef, StageKey, StageRecord
from schemas.records.rollout import Group
from schemas.records.teacher import QueryCredit, TeacherTargets
from sdsearch.credit.retried_groups import as_groups
from sdsearch.credit.teacher import TeacherSettings, compute_targets
from sdsearch.model.ranks import rank
from sdsearch.training.strength import asks_teacher

if TYPE_CHECKING:
    from flows.training.trainer import Trainer

TEACHER: Final = StageKind(
    "teacher",
    reads=(
        "hindsight.homogeneous",
        "hindsight.unsent_queries",
        "hindsight.answer",
        "distillation.teacher",
        "distillation.ema_decay",
        "distillation.positions",
        "distillation.gate",
        "distillation.gate_options",
        "distillation.divergence",
        "distillation.divergence_options",
        "distillation.support",
        "distillation.tail",
        "distillation.top_k",
        "rollout.temperature",
        "update.max_tokens_per_microbatch",
        "update.head_chunk",
    ),
    code=(__name__, "flows.training.ranks.policy"),
)


def compute_teacher(
    trainer: Trainer, runner: StageRunner, iteration: int, sampled: StageRecord, blocks: StageRecord
) -> StageRecord:
    """Compute the teacher's distributions with the weights that sampled; while alpha is zero no pass is made."""
    state = strength_before(runner.storage.ledger, runner.files, runner.settings, runner.run, iteration)
    active = asks_teacher(runner.settings, iteration, state)
    upstream = [sampled, blocks, "teacher" if active else "no teacher", *_averaged(runner, sampled)]
    if runner.settings.rollout.retries:
        upstream.append(f"retries: {runner.settings.rollout.retries_use}")
    with runner.attempt(TEACHER, iteration, upstream) as attempt:
        if attempt.needed:
            attempt.outputs += trainer.compute_teacher(attempt.record, sampled, blocks)
            attempt.num_ranks = trainer.num_ranks
    return attempt.record


def _averaged(runner: StageRunner, sampled: StageRecord) -> list[StageRecord]:
    """Return the update whose checkpoint holds the average that the teacher is; none for another teacher."""
    if runner.settings.distillation.teacher != "ema":
        return []
    of_policy = StageKey(run=sampled.adopted_from or sampled.run, iteration=sampled.iteration - 1, stage="update")
    update = runner.storage.ledger.done(of_policy)
    return [update] if update else []


def teach(
    live: Runtime, files: StageFiles, attempt: StageRecord, sampled: StageRecord, blocks: StageRecord
) -> list[ArtifactRef]:
    """Do the stage's work, as `Trainer.compute_teacher` says; of several ranks the first one writes the files."""
    settings, policy = live.settings, live.policy
    state = strength_before(live.storage.ledger, files, settings, attempt.run, attempt.iteration)
    active = asks_teacher(settings, attempt.iteration, state)
    policy.move_to(attempt.iteration - 1)
    groups = files.read(sampled, "groups", Group) if active else []
    if active and settings.rollout.retries_use == "distillation":
        groups = [*groups, *as_groups(groups, retries_of(files, settings, sampled))]
    tensors, pointers, credit = compute_targets(
        policy.model,
        policy.tokenizer,
        groups,
        files.read(blocks, "blocks", HindsightBlock) if active else [],
        TeacherSettings.of(settings),
        policy.teacher(settings.distillation) if active else None,
    )
    if rank():
        return []
    stored = {"ids": tensors.ids_QK, "logprobs": tensors.teacher_QC}
    return [
        live.storage.artifacts.write_tensors(attempt.key, "distributions", stored),
        files.write(attempt.key, "targets", TeacherTargets, pointers),
        files.write(attempt.key, "credit", QueryCredit, credit),
    ]
