"""Stage sample: a group of rollouts for each question of an iteration, by the policy before its update."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from flows.run.live import LIVE_CODE, Runtime
from flows.run.perform import StageRunner
from flows.run.progress import RolloutProgress
from flows.run.stage_inputs import StageKind
from flows.training.retries import sample_retries
from schemas.records.ledger import StageRecord
from schemas.records.retry import RetriedGroup
from schemas.records.rollout import Group
from sdsearch.data.questions import questions_hash

SAMPLE: Final = StageKind(
    "sample",
    # What is found follows from the index's fingerprint, which is an input of its own; not from how it is reached.
    reads=("seed", "model", "data", "rollout", "sampling", "retrieval.num_passages"),
    code=(__name__, *LIVE_CODE),
)
# Which groups are retried, and the block that the retries read.
_RETRYING: Final = replace(SAMPLE, reads=(*SAMPLE.reads, "hindsight"), code=(*SAMPLE.code, "flows.training.retries"))


def sample_groups(live: Runtime, runner: StageRunner, iteration: int, last_update: StageRecord | None) -> StageRecord:
    """Roll out a group for each question of the iteration by the policy of `last_update` (None: the start).

    With rollout.retries the groups without a CORRECT rollout are retried.
    """
    rollout = runner.settings.rollout
    questions = live.questions.curriculum.questions_of(iteration)
    upstream = [last_update or live.base_fingerprint, live.index_fingerprint, questions_hash(questions)]
    with runner.attempt(_RETRYING if rollout.retries else SAMPLE, iteration, upstream) as attempt:
        if attempt.needed:
            progress = RolloutProgress(runner.reporter, len(questions), rollout.group_size)
            loop = live.rollout_loop(iteration - 1, progress)
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
                progress.kept(len(groups))
            attempt.write("groups", Group, groups)
            if rollout.retries:
                attempt.write("retries", RetriedGroup, sample_retries(live, attempt, groups, iteration))
    return attempt.record
