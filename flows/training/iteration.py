"""One RL iteration: the paper's algorithm as six stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from flows.evaluation.stage import evaluate_policy
from flows.run.live import Runtime
from flows.run.perform import StageRunner
from flows.training.stages.hindsight import build_hindsight
from flows.training.stages.sample import sample_groups
from flows.training.stages.score import score_rollouts
from flows.training.stages.teacher import compute_teacher
from flows.training.stages.update import update_weights
from flows.training.trainer import Trainer, open_trainer
from schemas.records.ledger import StageRecord
from storage.runs.lock import RunLock

Stage = Callable[..., StageRecord]


class Stages(NamedTuple):
    """The six verbs; plain functions, or Prefect tasks over them."""

    sample_groups: Stage = sample_groups
    score_rollouts: Stage = score_rollouts
    build_hindsight: Stage = build_hindsight
    compute_teacher: Stage = compute_teacher
    update_weights: Stage = update_weights
    evaluate_policy: Stage = evaluate_policy


PLAIN = Stages()


@dataclass(frozen=True)
class Training:
    """The stages of an open run: over which live objects, performed by what, and who trains."""

    live: Runtime
    runner: StageRunner
    trainer: Trainer
    do: Stages = PLAIN

    @classmethod
    def over(cls, live: Runtime, lock: RunLock, num_done: int) -> Training:
        """Return the stages of a run whose lock this process holds; nothing is committed once it was taken away.

        num_done: the last iteration that was done before.
        """
        runner = StageRunner(live, lock.check, num_done)
        trainer = open_trainer(live, runner.files)
        live.at_close(trainer.close)
        return cls(live, runner, trainer)

    def iterate(self, iteration: int, last_update: StageRecord | None, evaluation_is_due: bool) -> StageRecord:
        """One iteration: turn the policy of the last update into the next one."""
        do, live, runner, trainer = self.do, self.live, self.runner, self.trainer
        sampled = do.sample_groups(live, runner, iteration, last_update)
        scored = do.score_rollouts(live, runner, iteration, sampled)
        blocks = do.build_hindsight(live, runner, iteration, sampled, scored)
        targets = do.compute_teacher(trainer, runner, iteration, sampled, blocks)
        updated = do.update_weights(trainer, runner, iteration, sampled, scored, targets)
        if evaluation_is_due:
            do.evaluate_policy(live, runner, iteration, updated)
        return updated

    def evaluate(self, version: int, last_update: StageRecord | None) -> StageRecord:
        """Evaluate the policy of the last update, as a run does before its first iteration."""
        return self.do.evaluate_policy(self.live, self.runner, version, last_update)
