"""The six stages as plain functions: each reads records, does one thing, and leaves files and rows.

A stage takes the live objects that it needs, what performs it, the iteration (from 1) and the records of the stages
before it, and returns its own. Beside each stands what of the settings it reads.
"""

from __future__ import annotations

from typing import Final

from flows.evaluation.stage import evaluate_sets
from flows.run.block_room import told_of_cuts
from flows.run.live import Runtime
from flows.run.perform import StageRunner
from flows.run.stage_inputs import StageKind
from flows.training.noise import told_of_noise
from flows.training.trainer import Trainer
from schemas.records.hindsight import HindsightBlock
from schemas.records.ledger import StageRecord
from schemas.records.rollout import Group
from schemas.records.score import Score
from schemas.records.update import UpdateReport
from sdsearch.credit.hindsight import build_blocks
from sdsearch.credit.scoring import score_groups, scores_by_group
from sdsearch.data.questions import questions_hash

# What is found follows from the index's fingerprint, which is an input of its own; not from how it is reached.
SAMPLE: Final = StageKind("sample", ("seed", "model", "data", "rollout", "sampling", "retrieval.num_passages"))
SCORE: Final = StageKind("score", ("reward", "grpo", "hindsight"))
HINDSIGHT: Final = StageKind(
    "hindsight", ("seed", "hindsight", "distillation.enabled", "rollout.protocol", "rollout.protocol_options")
)
TEACHER: Final = StageKind(
    "teacher",
    (
        "hindsight.homogeneous",
        "hindsight.unsent_queries",
        "distillation.positions",
        "distillation.divergence",
        "distillation.divergence_options",
        "distillation.support",
        "distillation.tail",
        "distillation.top_k",
        "rollout.temperature",
        "update.max_tokens_per_microbatch",
        "update.head_chunk",
    ),
)
UPDATE: Final = StageKind(
    "update", ("seed", "iterations", "model", "data", "rollout", "grpo", "distillation", "update")
)


def sample_groups(live: Runtime, runner: StageRunner, iteration: int, last_update: StageRecord | None) -> StageRecord:
    """Roll out a group for each question of the iteration by the policy of `last_update` (None: the start)."""
    rollout = runner.settings.rollout
    questions = live.questions.curriculum.questions_of(iteration)
    upstream = [last_update or live.base_fingerprint, live.index_fingerprint, questions_hash(questions)]
    with runner.attempt(SAMPLE, iteration, upstream) as attempt:
        if attempt.needed:
            loop = live.rollout_loop(iteration - 1)
            groups: list[Group] = []
            # A batch is never cut anew: log-probabilities may depend, in their last bits, on what shares the batch.
            for start in range(0, len(questions), rollout.questions_per_batch):
                name = f"groups-{start:05d}"
                groups += attempt.find_partial(name, Group) or attempt.keep_partial(
                    name,
                    Group,
                    loop.roll_out(
                        questions[start : start + rollout.questions_per_batch],
                        run_seed=runner.settings.seed,
                        iteration=iteration,
                        policy_version=iteration - 1,
                        group_size=rollout.group_size,
                        temperature=rollout.temperature,
                    ),
                )
                runner.reporter.stage_progress(len(groups), len(questions))
            attempt.write("groups", Group, groups)
    return attempt.record


def score_rollouts(runner: StageRunner, iteration: int, sampled: StageRecord) -> StageRecord:
    """Score the rollouts and put them into the database."""
    with runner.attempt(SCORE, iteration, [sampled]) as attempt:
        if attempt.needed:
            groups = runner.files.read(sampled, "groups", Group)
            attempt.write("scores", Score, score_groups(groups, runner.settings.reward, runner.settings.grpo))
    return attempt.record


def build_hindsight(
    live: Runtime, runner: StageRunner, iteration: int, sampled: StageRecord, scored: StageRecord
) -> StageRecord:
    """Build the groups' hindsight blocks; none when distillation is off."""
    settings = runner.settings
    with runner.attempt(HINDSIGHT, iteration, [sampled, scored]) as attempt:
        if attempt.needed:
            live.policy.move_to(iteration - 1)
            of_group = scores_by_group(runner.files.read(scored, "scores", Score))
            groups = runner.files.read(sampled, "groups", Group) if settings.distillation.enabled else []
            blocks = [
                block
                for group in groups
                for block in build_blocks(
                    group,
                    of_group[group.id],
                    settings=settings.hindsight,
                    seed=settings.seed,
                    tokenizer=live.policy.tokenizer,
                    max_context_tokens=live.policy.max_context_tokens,
                    tags=live.protocol.tags,
                )
            ]
            if (cuts := told_of_cuts(iteration, blocks)) is not None:
                runner.note_once("cuts", cuts)
            attempt.write("blocks", HindsightBlock, blocks)
    return attempt.record


def compute_teacher(
    trainer: Trainer, runner: StageRunner, iteration: int, sampled: StageRecord, blocks: StageRecord
) -> StageRecord:
    """Compute the teacher's distributions with the weights that sampled; while alpha is zero no pass is made."""
    active = runner.settings.alpha_at(iteration) > 0
    with runner.attempt(TEACHER, iteration, [sampled, blocks, "teacher" if active else "no teacher"]) as attempt:
        if attempt.needed:
            attempt.outputs += trainer.compute_teacher(attempt.record, sampled, blocks)
    return attempt.record


def update_weights(
    trainer: Trainer,
    runner: StageRunner,
    iteration: int,
    sampled: StageRecord,
    scored: StageRecord,
    targets: StageRecord,
) -> StageRecord:
    """Take the iteration's optimiser steps and write the new version of the policy."""
    with runner.attempt(UPDATE, iteration, [sampled, scored, targets]) as attempt:
        if attempt.needed:
            attempt.outputs += trainer.update_weights(attempt.record, sampled, scored, targets)
    (report,) = runner.files.read(attempt.record, "update", UpdateReport)
    if attempt.needed and (lost := told_of_noise(iteration, report.steps)) is not None:
        runner.note_once("noise", lost)
    runner.advance(report)
    return attempt.record


def evaluate_policy(live: Runtime, runner: StageRunner, iteration: int, last_update: StageRecord | None) -> StageRecord:
    """Evaluate the plain policy after `iteration` updates on the fixed sample of questions."""
    return evaluate_sets(live, runner, iteration, last_update, [live.evaluated_set])
