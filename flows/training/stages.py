"""The six stages as plain functions: each reads records, does one thing, and leaves files and rows.

A stage takes the run's name, the iteration (from 1) and the records of the stages before it, and returns its own.
"""

from __future__ import annotations

from functools import partial

import torch

from flows.evaluation.stage import evaluate_sets
from flows.run.block_room import told_of_cuts
from flows.run.live import runtime_of
from flows.training.noise import told_of_noise
from flows.training.refused_steps import refused_steps_kept
from schemas.records.hindsight import HindsightBlock
from schemas.records.ledger import ArtifactRef, StageRecord
from schemas.records.question import Question
from schemas.records.rollout import Group
from schemas.records.score import Score
from schemas.records.teacher import QueryCredit, TeacherTargets
from schemas.records.update import UpdateReport
from sdsearch.credit.hindsight import build_blocks
from sdsearch.credit.scoring import score_groups, scores_by_group
from sdsearch.credit.teacher import TargetTensors, compute_targets
from sdsearch.data.questions import questions_hash
from sdsearch.training.training_set import training_rollouts
from sdsearch.training.update import update_policy
from storage.database.stage_rows import file_of


def sample_groups(run: str, iteration: int, last_update: StageRecord | None) -> StageRecord:
    """Roll out a group for each question of the iteration by the policy of `last_update` (None: the start)."""
    runtime = runtime_of(run)
    settings = runtime.settings
    questions = runtime.questions.curriculum.questions_of(iteration)

    def work(record: StageRecord) -> list[ArtifactRef]:
        loop = runtime.rollout_loop(iteration - 1)

        def roll_out(batch: list[Question]) -> list[Group]:
            return loop.roll_out(
                batch,
                run_seed=settings.seed,
                iteration=iteration,
                policy_version=iteration - 1,
                group_size=settings.rollout.group_size,
                temperature=settings.rollout.temperature,
            )

        # A batch is never cut anew: log-probabilities may depend, in their last bits, on what shares the batch.
        groups: list[Group] = []
        size = settings.rollout.questions_per_batch
        for start in range(0, len(questions), size):
            batch = questions[start : start + size]
            groups += runtime.partial_result(record, f"groups-{start:05d}", Group, partial(roll_out, batch))
            runtime.reporter.stage_progress(len(groups), len(questions))
        return [runtime.write(record, "groups", Group, groups)]

    upstream = [last_update or runtime.base_fingerprint, runtime.index_fingerprint, questions_hash(questions)]
    return runtime.perform("sample", iteration, upstream, work)


def score_rollouts(run: str, iteration: int, sampled: StageRecord) -> StageRecord:
    """Score the rollouts and put them into the database."""
    runtime = runtime_of(run)
    settings = runtime.settings

    def work(record: StageRecord) -> list[ArtifactRef]:
        scores = score_groups(runtime.read(sampled, "groups", Group), settings.reward, settings.grpo)
        return [runtime.write(record, "scores", Score, scores)]

    return runtime.perform("score", iteration, [sampled], work)


def build_hindsight(run: str, iteration: int, sampled: StageRecord, scored: StageRecord) -> StageRecord:
    """Build the groups' hindsight blocks; none when distillation is off."""
    runtime = runtime_of(run)
    settings = runtime.settings

    def work(record: StageRecord) -> list[ArtifactRef]:
        runtime.policy.move_to(iteration - 1)
        of_group = scores_by_group(runtime.read(scored, "scores", Score))
        groups = runtime.read(sampled, "groups", Group) if settings.distillation.enabled else []
        blocks = [
            block
            for group in groups
            for block in build_blocks(
                group,
                of_group[group.id],
                settings=settings.hindsight,
                seed=settings.seed,
                tokenizer=runtime.policy.tokenizer,
                max_context_tokens=runtime.policy.max_context_tokens,
            )
        ]
        if (cuts := told_of_cuts(iteration, blocks)) is not None:
            runtime.note_once("cuts", cuts)
        return [runtime.write(record, "blocks", HindsightBlock, blocks)]

    return runtime.perform("hindsight", iteration, [sampled, scored], work)


def compute_teacher(run: str, iteration: int, sampled: StageRecord, blocks: StageRecord) -> StageRecord:
    """Compute the teacher's distributions with the weights that sampled; while alpha is zero no pass is made."""
    runtime = runtime_of(run)
    settings = runtime.settings
    active = settings.alpha_at(iteration) > 0

    def work(record: StageRecord) -> list[ArtifactRef]:
        runtime.policy.move_to(iteration - 1)
        tensors, pointers, credit = compute_targets(
            runtime.policy.model,
            runtime.policy.tokenizer,
            runtime.read(sampled, "groups", Group) if active else [],
            runtime.read(blocks, "blocks", HindsightBlock) if active else [],
            hindsight=settings.hindsight,
            distillation=settings.distillation,
            temperature=settings.rollout.temperature,
            max_tokens=settings.update.max_tokens_per_microbatch,
            head_chunk=settings.update.head_chunk,
        )
        stored = {"ids": tensors.ids_QK, "logprobs": tensors.teacher_QC}
        return [
            runtime.storage.artifacts.write_tensors(record.key, "distributions", stored),
            runtime.write(record, "targets", TeacherTargets, pointers),
            runtime.write(record, "credit", QueryCredit, credit),
        ]

    return runtime.perform("teacher", iteration, [sampled, blocks, "teacher" if active else "no teacher"], work)


def update_weights(
    run: str, iteration: int, sampled: StageRecord, scored: StageRecord, targets: StageRecord
) -> StageRecord:
    """Take the iteration's optimiser steps and write the new version of the policy."""
    runtime = runtime_of(run)
    settings = runtime.settings

    def work(record: StageRecord) -> list[ArtifactRef]:
        policy = runtime.policy
        policy.move_to(iteration - 1)
        torch.manual_seed(record.seed)  # A model with dropout draws from torch's own generator.
        stored = runtime.storage.artifacts.read_tensors(file_of(targets, "distributions"))
        rollouts = training_rollouts(
            runtime.read(sampled, "groups", Group),
            runtime.read(scored, "scores", Score),
            runtime.read(targets, "targets", TeacherTargets),
            TargetTensors(stored["ids"], stored["logprobs"]),
        )
        num_steps = settings.num_steps_per_iteration
        steps = []
        with refused_steps_kept(runtime.storage.workspace, record.key):
            for step in update_policy(
                policy.model,
                policy.frozen_reference,
                policy.optimiser,
                rollouts,
                settings,
                iteration=iteration,
                steps_done=(iteration - 1) * num_steps,
            ):
                steps.append(step)
                runtime.reporter.stage_progress(len(steps), num_steps)
        if (lost := told_of_noise(iteration, steps)) is not None:
            runtime.note_once("noise", lost)
        checkpoint = policy.save_as(iteration)
        report = UpdateReport(
            iteration=iteration,
            policy_version=iteration,
            policy_sha256=policy.sha256(),
            steps=tuple(steps),
            num_tokens=sum(rollout.sequence.num_tokens for rollout in rollouts) * settings.update.epochs,
        )
        return [checkpoint, runtime.write(record, "update", UpdateReport, [report])]

    record = runtime.perform("update", iteration, [sampled, scored, targets], work)
    runtime.advance(record)
    return record


def evaluate_policy(run: str, iteration: int, last_update: StageRecord | None) -> StageRecord:
    """Evaluate the plain policy after `iteration` updates on the fixed sample of questions."""
    runtime = runtime_of(run)
    return evaluate_sets(runtime, iteration, last_update, [runtime.evaluated_set])
