"""The six stages as plain functions: each reads records, does one thing, and leaves files and rows.

A stage takes the run's name, the iteration (from 1) and the records of the stages before it, and returns its own.
"""

from __future__ import annotations

from flows.refusals import refused_steps_kept
from flows.runtime import Runtime, StageOutput, file_of, runtime_of
from schemas.evaluation import EvaluationAnswer, EvaluationReport
from schemas.hindsight import HindsightBlock
from schemas.ledger import StageKey, StageRecord
from schemas.rollout import Group
from schemas.score import Score
from schemas.teacher import QueryCredit, TeacherTargets
from schemas.update import UpdateReport
from sdsearch.curriculum import questions_of
from sdsearch.evaluation import evaluate, fixed_sample
from sdsearch.hindsight import build_blocks
from sdsearch.scoring import contains_answer, score_groups
from sdsearch.teacher import TargetTensors, compute_targets
from sdsearch.training_set import training_rollouts
from sdsearch.update import update_policy
from storage.rollout_tables import persist_rows
from storage.tables import evaluation_rows, hindsight_rows, teacher_rows, update_rows


def sample_groups(run: str, iteration: int, policy: StageRecord | None) -> StageRecord:
    """Roll out a group for each of the iteration's questions; `policy` is the last update (None: starting weights)."""
    runtime = runtime_of(run)
    settings = runtime.settings

    def work(key: StageKey) -> StageOutput:
        loop = runtime.rollout_loop(iteration - 1)
        data = settings.data
        questions = questions_of(iteration, runtime.train_questions, data.questions_per_iteration, data.shuffle_seed)
        groups: list[Group] = []
        for start in range(0, len(questions), settings.rollout.questions_per_batch):
            batch = questions[start : start + settings.rollout.questions_per_batch]
            groups += loop.roll_out(
                batch,
                run_seed=settings.seed,
                iteration=iteration,
                policy_version=iteration - 1,
                group_size=settings.rollout.group_size,
                temperature=settings.rollout.temperature,
            )
            runtime.reporter.stage_progress(len(groups), len(questions))
        return StageOutput([runtime.stores.artifacts.write_records(key, "groups", Group, groups)])

    upstream = [policy or runtime.base_fingerprint, runtime.index_fingerprint]
    return runtime.perform("sample", iteration, upstream, work)


def persist_rollouts(run: str, iteration: int, sampled: StageRecord) -> StageRecord:
    """Score the rollouts and put them into the database."""
    runtime = runtime_of(run)
    settings = runtime.settings

    def work(key: StageKey) -> StageOutput:
        groups = runtime.read(sampled, "groups", Group)
        scores = score_groups(groups, settings.reward, settings.grpo)
        hindsight = settings.hindsight
        rows = persist_rows(run, iteration, groups, scores, contains_answer, hindsight.label_metric, hindsight.rho)
        return StageOutput([runtime.stores.artifacts.write_records(key, "scores", Score, scores)], rows)

    return runtime.perform("persist", iteration, [sampled], work)


def build_hindsight(run: str, iteration: int, sampled: StageRecord, scored: StageRecord) -> StageRecord:
    """Build the groups' hindsight blocks; none when distillation is off."""
    runtime = runtime_of(run)
    settings = runtime.settings

    def work(key: StageKey) -> StageOutput:
        runtime.policy.move_to(iteration - 1)
        scores = runtime.read(scored, "scores", Score)
        groups = runtime.read(sampled, "groups", Group) if settings.distillation.enabled else []
        of_group: dict[str, list[Score]] = {}
        for score in scores:
            of_group.setdefault(score.group_id, []).append(score)
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
        reference = runtime.stores.artifacts.write_records(key, "blocks", HindsightBlock, blocks)
        return StageOutput([reference], hindsight_rows(run, iteration, blocks))

    return runtime.perform("hindsight", iteration, [sampled, scored], work)


def compute_teacher(run: str, iteration: int, sampled: StageRecord, blocks: StageRecord) -> StageRecord:
    """Compute the teacher's distributions with the weights that sampled; while alpha is zero no pass is made."""
    runtime = runtime_of(run)
    settings = runtime.settings
    active = settings.alpha_at(iteration) > 0

    def work(key: StageKey) -> StageOutput:
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
        artifacts = runtime.stores.artifacts
        stored = artifacts.write_tensors(key, "distributions", {"ids": tensors.ids_QK, "logprobs": tensors.teacher_QC})
        files = [
            stored,
            artifacts.write_records(key, "targets", TeacherTargets, pointers),
            artifacts.write_records(key, "credit", QueryCredit, credit),
        ]
        return StageOutput(files, teacher_rows(run, iteration, pointers, credit, stored))

    return runtime.perform("teacher", iteration, [sampled, blocks, "teacher" if active else "no teacher"], work)


def update_weights(
    run: str, iteration: int, sampled: StageRecord, scored: StageRecord, targets: StageRecord
) -> StageRecord:
    """Take the iteration's optimiser steps and write the new version of the policy."""
    runtime = runtime_of(run)
    settings = runtime.settings

    def work(key: StageKey) -> StageOutput:
        policy = runtime.policy
        policy.move_to(iteration - 1)
        stored = runtime.stores.artifacts.read_tensors(file_of(targets, "distributions"))
        rollouts = training_rollouts(
            runtime.read(sampled, "groups", Group),
            runtime.read(scored, "scores", Score),
            runtime.read(targets, "targets", TeacherTargets),
            TargetTensors(stored["ids"], stored["logprobs"]),
        )
        num_steps = settings.num_steps_per_iteration
        steps = []
        with refused_steps_kept(runtime.stores.workspace, key):
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
        checkpoint = policy.save_as(iteration)
        report = UpdateReport(
            iteration=iteration,
            policy_version=iteration,
            policy_sha256=policy.sha256(),
            steps=tuple(steps),
            num_tokens=sum(rollout.sequence.num_tokens for rollout in rollouts) * settings.update.epochs,
        )
        files = [checkpoint, runtime.stores.artifacts.write_records(key, "update", UpdateReport, [report])]
        changes = {
            "iterations_done": iteration,
            "policy_version": iteration,
            "policy_sha256": report.policy_sha256,
        }
        return StageOutput(files, update_rows(run, iteration, report), changes)

    return runtime.perform("update", iteration, [sampled, scored, targets], work)


def evaluate_policy(run: str, iteration: int, policy: StageRecord | None) -> StageRecord:
    """Evaluate the plain policy after `iteration` updates on the fixed sample of questions."""
    runtime = runtime_of(run)
    settings = runtime.settings.evaluation

    def work(key: StageKey) -> StageOutput:
        loop = runtime.rollout_loop(iteration)
        questions = fixed_sample(runtime.questions(settings.split), settings.num_questions, settings.seed)
        results = []
        for mode in settings.modes:
            report, answers = evaluate(
                loop,
                questions,
                mode=mode,
                temperature=runtime.settings.rollout.temperature,
                seed=settings.seed,
                iteration=iteration,
                policy_version=iteration,
                questions_per_batch=runtime.settings.rollout.questions_per_batch * 4,
            )
            results.append((report, answers))
            runtime.reporter.stage_progress(len(results), len(settings.modes))
        artifacts = runtime.stores.artifacts
        files = [artifacts.write_records(key, "reports", EvaluationReport, [report for report, _ in results])]
        files += [
            artifacts.write_records(key, f"answers_{report.mode}", EvaluationAnswer, answers)
            for report, answers in results
        ]
        changes = {} if iteration else {"policy_sha256": runtime.policy.sha256()}
        return StageOutput(files, evaluation_rows(run, iteration, results), changes)

    upstream = [policy or runtime.base_fingerprint, runtime.index_fingerprint]
    record = runtime.perform("evaluate", iteration, upstream, work)
    report_evaluations(runtime, record)
    return record


def report_evaluations(runtime: Runtime, record: StageRecord) -> None:
    """Tell the reporter what an evaluation found."""
    for report in runtime.read(record, "reports", EvaluationReport):
        runtime.reporter.evaluated(report)
