"""Stage sample: a group of rollouts for each question of an iteration, by the policy before its update."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from flows.plugins.check import plugin_sources
from flows.run.live import LIVE_CODE, Runtime
from flows.run.perform import StageRunner
from flows.run.stage_inputs import StageKind, code_hash
from flows.training.retries import sample_retries
from flows.training.sampled_groups import GroupSampling
from schemas.records.ledger import StageRecord
from schemas.records.question import Question
from schemas.records.retry import RetriedGroup
from schemas.records.rollout import Group
from schemas.settings.root import Settings
from sdsearch.data.questions import questions_hash

SAMPLE: Final = StageKind(
    "sample",
    # What is found follows from the index's fingerprint, which is an input of its own; not from how it is reached.
    reads=("seed", "model", "data", "rollout", "sampling", "retrieval.num_passages"),
    code=(__name__, "flows.training.sampled_groups", *LIVE_CODE),
)


def sample_groups(live: Runtime, runner: StageRunner, iteration: int, last_update: StageRecord | None) -> StageRecord:
    """Roll out a group for each question of the iteration by the policy of `last_update` (None: the start).

    With grpo.filter 'resample' further questions follow where groups have equal rewards, and with rollout.retries the
    groups without a CORRECT rollout are retried.
    """
    settings = runner.settings
    questions = live.questions.curriculum.questions_of(iteration)
    candidates = _candidates(live, iteration, len(questions))
    upstream = [last_update or live.base_fingerprint, live.index_fingerprint, questions_hash(questions)]
    upstream += _replacing_reads(settings, candidates)
    with runner.attempt(_kind(settings), iteration, upstream) as attempt:
        if attempt.needed:
            sampling = GroupSampling(live, attempt, iteration, questions)
            for batch in sampling.batches(candidates):
                sampling.keep(batch, sampling.roll_out(batch.questions))
            attempt.write("groups", Group, sampling.groups)
            if settings.rollout.retries:
                attempt.write("retries", RetriedGroup, sample_retries(live, attempt, sampling.groups, iteration))
    return attempt.record


def _kind(settings: Settings) -> StageKind:
    """Return the stage with what else it reads: the rewards that replace groups, and the blocks that retries read."""
    kind = SAMPLE
    if settings.grpo.filter == "resample":
        kind = replace(kind, reads=(*kind.reads, "reward", "grpo.filter", "grpo.resample_rounds"))
    if settings.rollout.retries:
        kind = replace(kind, reads=(*kind.reads, "hindsight"), code=(*kind.code, "flows.training.retries"))
    return kind


def _candidates(live: Runtime, iteration: int, num_questions: int) -> list[Question]:
    """Return the further questions that an iteration may draw; none where it draws none."""
    grpo = live.settings.grpo
    if grpo.filter != "resample":
        return []
    return live.questions.curriculum.replacements_of(iteration, grpo.resample_rounds * num_questions)


def _replacing_reads(settings: Settings, candidates: list[Question]) -> list[str]:
    """Return the inputs that decide which groups are replaced: the questions, and the code of one's own reward."""
    if settings.grpo.filter != "resample":
        return []
    sources = {
        f"{name}: {file}": sha256
        for name, hashes in plugin_sources(settings, "score").items()
        for file, sha256 in hashes.items()
    }
    return [f"replacements: {questions_hash(candidates)}", f"reward: {code_hash(sources)}"]
