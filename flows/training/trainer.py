"""Who holds the trained weights: the port that the teacher and update stages call, and this process behind it."""

from __future__ import annotations

from typing import Protocol

import torch

from flows.run.live import Runtime
from flows.run.stage_files import StageFiles
from flows.training.refused_steps import refused_steps_kept
from schemas.records.hindsight import HindsightBlock
from schemas.records.ledger import ArtifactRef, StageRecord
from schemas.records.rollout import Group
from schemas.records.score import Score
from schemas.records.teacher import QueryCredit, TeacherTargets
from schemas.records.update import StepReport, UpdateReport
from sdsearch.credit.teacher import TargetTensors, compute_targets
from sdsearch.training.loss import TrainingRollout
from sdsearch.training.training_set import training_rollouts
from sdsearch.training.update import update_policy
from storage.database.stage_rows import file_of


class Trainer(Protocol):
    """The process, or the processes together, that hold the policy's weights, its optimiser and its reference.

    A call is the whole work of a stage. Records of stages go in and references to files come out, which can be handed
    to any process; `attempt` is the attempt that the files belong to. Weights are handed over as checkpoints: a stage
    of iteration n begins from version n - 1, and an update writes version n.
    """

    def compute_teacher(self, attempt: StageRecord, sampled: StageRecord, blocks: StageRecord) -> list[ArtifactRef]:
        """Write the teacher's distributions, the pointers into them, and the credit of each distilled token."""
        ...

    def update_weights(
        self, attempt: StageRecord, sampled: StageRecord, scored: StageRecord, targets: StageRecord
    ) -> list[ArtifactRef]:
        """Take the iteration's optimiser steps; write the new version's checkpoint and the report of the steps.

        Raises UserError, and the weights stay as they were, for a step that is not finite.
        """
        ...


class InProcessTrainer:
    """A `Trainer` in the run's own process, on the policy that also samples."""

    def __init__(self, live: Runtime, files: StageFiles) -> None:
        self._live = live
        self._files = files

    def compute_teacher(self, attempt: StageRecord, sampled: StageRecord, blocks: StageRecord) -> list[ArtifactRef]:
        """While alpha is zero no pass is made, and what is written is empty."""
        settings, policy, files = self._live.settings, self._live.policy, self._files
        active = settings.alpha_at(attempt.iteration) > 0
        policy.move_to(attempt.iteration - 1)
        tensors, pointers, credit = compute_targets(
            policy.model,
            policy.tokenizer,
            files.read(sampled, "groups", Group) if active else [],
            files.read(blocks, "blocks", HindsightBlock) if active else [],
            hindsight=settings.hindsight,
            distillation=settings.distillation,
            temperature=settings.rollout.temperature,
            max_tokens=settings.update.max_tokens_per_microbatch,
            head_chunk=settings.update.head_chunk,
        )
        stored = {"ids": tensors.ids_QK, "logprobs": tensors.teacher_QC}
        return [
            self._live.storage.artifacts.write_tensors(attempt.key, "distributions", stored),
            files.write(attempt.key, "targets", TeacherTargets, pointers),
            files.write(attempt.key, "credit", QueryCredit, credit),
        ]

    def update_weights(
        self, attempt: StageRecord, sampled: StageRecord, scored: StageRecord, targets: StageRecord
    ) -> list[ArtifactRef]:
        """Errors as of `Trainer`."""
        settings, policy, iteration = self._live.settings, self._live.policy, attempt.iteration
        policy.move_to(iteration - 1)
        torch.manual_seed(attempt.seed)  # A model with dropout draws from torch's own generator.
        rollouts = self._rollouts(sampled, scored, targets)
        steps = self._take_steps(attempt, rollouts)
        checkpoint = policy.save_as(iteration)
        report = UpdateReport(
            iteration=iteration,
            policy_version=iteration,
            policy_sha256=policy.sha256(),
            steps=tuple(steps),
            num_tokens=sum(rollout.sequence.num_tokens for rollout in rollouts) * settings.update.epochs,
        )
        return [checkpoint, self._files.write(attempt.key, "update", UpdateReport, [report])]

    def _rollouts(self, sampled: StageRecord, scored: StageRecord, targets: StageRecord) -> list[TrainingRollout]:
        stored = self._live.storage.artifacts.read_tensors(file_of(targets, "distributions"))
        return training_rollouts(
            self._files.read(sampled, "groups", Group),
            self._files.read(scored, "scores", Score),
            self._files.read(targets, "targets", TeacherTargets),
            TargetTensors(stored["ids"], stored["logprobs"]),
        )

    def _take_steps(self, attempt: StageRecord, rollouts: list[TrainingRollout]) -> list[StepReport]:
        settings, policy = self._live.settings, self._live.policy
        num_steps = settings.num_steps_per_iteration
        steps = []
        with refused_steps_kept(self._live.storage.workspace, attempt.key):
            for step in update_policy(
                policy.model,
                policy.frozen_reference,
                policy.optimiser,
                rollouts,
                settings,
                iteration=attempt.iteration,
                steps_done=(attempt.iteration - 1) * num_steps,
            ):
                steps.append(step)
                self._live.reporter.stage_progress(len(steps), num_steps)
        return steps
