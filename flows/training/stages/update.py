"""Stage update: the iteration's optimiser steps, and the new version of the policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from flows.run.live import Runtime
from flows.run.perform import StageRunner
from flows.run.stage_files import StageFiles
from flows.run.stage_inputs import StageKind
from flows.training.noise import told_of_noise
from flows.training.refused_steps import refused_steps_kept
from flows.training.stored_retries import retries_of
from flows.training.strength import strength_before
from schemas.records.ledger import ArtifactRef, StageRecord
from schemas.records.rollout import Group
from schemas.records.score import Score
from schemas.records.teacher import QueryCredit, TeacherTargets
from schemas.records.update import StepReport, UpdateReport
from schemas.settings.root import Settings
from schemas.settings.strength import RetireSchedule
from sdsearch.credit.hindsight import correct_rollouts
from sdsearch.credit.teacher import TargetTensors
from sdsearch.model.ranks import rank
from sdsearch.seeds import derive_seed
from sdsearch.training.loss import TrainingRollout
from sdsearch.training.strength import Strength, begin_iteration, measured_gap
from sdsearch.training.training_set import training_rollouts
from sdsearch.training.update import update_policy
from storage.database.stage_rows import file_of

if TYPE_CHECKING:
    from flows.training.trainer import Trainer

UPDATE: Final = StageKind(
    "update",
    # The checkpoint brings along what a run that starts from it shall take over: a longest block too.
    reads=(
        "seed",
        "iterations",
        "model",
        "data",
        "rollout",
        "grpo",
        "hindsight.max_block_tokens",
        "distillation",
        "update",
    ),
    code=(__name__, "flows.run.policy", "flows.training.ranks.policy", "flows.training.ranks.checkpoint"),
)


def update_weights(
    trainer: Trainer,
    runner: StageRunner,
    iteration: int,
    sampled: StageRecord,
    scored: StageRecord,
    targets: StageRecord,
) -> StageRecord:
    """Take the iteration's optimiser steps and write the new version of the policy."""
    with runner.attempt(UPDATE, iteration, [sampled, scored, targets, *_outcomes_read(runner.settings)]) as attempt:
        if attempt.needed:
            attempt.outputs += trainer.update_weights(attempt.record, sampled, scored, targets)
            attempt.num_ranks = trainer.num_ranks
    (report,) = runner.files.read(attempt.record, "update", UpdateReport)
    if attempt.needed and (lost := told_of_noise(iteration, report.steps)) is not None:
        runner.note_once("noise", lost)
    runner.advance(report)
    return attempt.record


def train(
    live: Runtime,
    files: StageFiles,
    attempt: StageRecord,
    sampled: StageRecord,
    scored: StageRecord,
    targets: StageRecord,
) -> list[ArtifactRef]:
    """Do the stage's work, as `Trainer.update_weights` says; of several ranks the first one writes the files."""
    policy, iteration = live.policy, attempt.iteration
    policy.move_to(iteration - 1)
    # A model with dropout draws from torch's own generator, on each rank other numbers.
    torch.manual_seed(derive_seed(attempt.seed, "rank", rank()) if rank() else attempt.seed)
    stored = live.storage.artifacts.read_tensors(file_of(targets, "distributions"))
    retried = retries_of(files, live.settings, sampled)
    rollouts = training_rollouts(
        files.read(sampled, "groups", Group),
        [*files.read(scored, "scores", Score), *(files.read(scored, "retry_scores", Score) if retried else [])],
        files.read(targets, "targets", TeacherTargets),
        TargetTensors(stored["ids"], stored["logprobs"]),
        retried,
        live.settings.rollout.retries_use,
    )
    strength = begin_iteration(
        live.settings,
        iteration,
        strength_before(live.storage.ledger, files, live.settings, attempt.run, iteration),
        _gap(live.settings, files, scored, targets),
    )
    average = policy.average(live.settings.distillation.ema_decay) if policy.keeps_average else None
    steps = _take_steps(live, attempt, rollouts, strength)
    checkpoint = policy.save_as(iteration, average)
    if rank():
        return []
    report = UpdateReport(
        iteration=iteration,
        policy_version=iteration,
        policy_sha256=policy.sha256(),
        steps=tuple(steps),
        num_tokens=sum(rollout.sequence.num_tokens for rollout in rollouts) * live.settings.update.epochs,
    )
    return [checkpoint, files.write(attempt.key, "update", UpdateReport, [report])]


def _gap(settings: Settings, files: StageFiles, scored: StageRecord, targets: StageRecord) -> float | None:
    """Return what schedule 'retire' looks at in this iteration; None with other schedules and without a teacher."""
    schedule, hindsight = settings.distillation.schedule, settings.hindsight
    if not isinstance(schedule, RetireSchedule):
        return None
    credit = files.read(targets, "credit", QueryCredit)
    scores = files.read(scored, "scores", Score) if schedule.gap == "log_ratio" else []
    return measured_gap(schedule.gap, credit, correct_rollouts(scores, hindsight.label_metric, hindsight.rho))


def _outcomes_read(settings: Settings) -> list[str]:
    """Return which outcomes the update reads, an input of its own: what calls a rollout CORRECT; none by default."""
    schedule, hindsight = settings.distillation.schedule, settings.hindsight
    reads = isinstance(schedule, RetireSchedule) and schedule.gap == "log_ratio"
    return [f"CORRECT: {hindsight.label_metric} above {hindsight.rho}"] if reads else []


def _take_steps(
    live: Runtime, attempt: StageRecord, rollouts: list[TrainingRollout], strength: Strength
) -> list[StepReport]:
    policy, num_steps = live.policy, live.settings.num_steps_per_iteration
    steps: list[StepReport] = []
    num_tokens = 0
    with refused_steps_kept(live.storage.workspace, attempt.key):
        for step in update_policy(
            policy.model,
            policy.frozen_reference,
            policy.optimiser,
            rollouts,
            live.settings,
            iteration=attempt.iteration,
            steps_done=(attempt.iteration - 1) * num_steps,
            strength=strength,
        ):
            steps.append(step)
            num_tokens += step.num_completion_tokens
            live.reporter.stage_pace(len(steps), num_steps, num_tokens)
            live.reporter.stage_progress(len(steps), num_steps)
    return steps
