"""Stage score: what each rollout earned, and its advantage in its group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flows.run.live import Runtime
from flows.run.perform import StageRunner
from flows.run.stage_inputs import StageKind
from flows.training.stored_retries import retries_of
from schemas.records.ledger import StageRecord
from schemas.records.rollout import Group
from schemas.records.score import Score
from schemas.settings.root import Settings
from sdsearch.credit.filtering import mark_filtered
from sdsearch.credit.retries import score_with_retries
from sdsearch.training.information_gain import AnswerReader, with_information_gain
from sdsearch.training.loss_settings import LossSettings

SCORE: Final = StageKind("score", reads=("reward", "grpo", "hindsight"), code=(__name__,))


def score_rollouts(live: Runtime, runner: StageRunner, iteration: int, sampled: StageRecord) -> StageRecord:
    """Score the rollouts and put them into the database; with turn rewards the policy that sampled reads them."""
    with runner.attempt(
        SCORE, iteration, [sampled, *_retries_read(runner.settings), *_passes_read(runner.settings)]
    ) as attempt:
        if attempt.needed:
            groups = runner.files.read(sampled, "groups", Group)
            settings, retried = runner.settings, retries_of(runner.files, runner.settings, sampled)
            use = settings.rollout.retries_use
            scores, retry_scores = score_with_retries(groups, retried, use, settings.reward, settings.grpo)
            if settings.reward.turn == "information_gain":
                scores = _with_information_gain(live, iteration, groups, scores)
            marked = mark_filtered([*scores, *retry_scores], settings.grpo)
            attempt.write("scores", Score, marked[: len(scores)])
            if settings.rollout.retries:
                attempt.write("retry_scores", Score, marked[len(scores) :])
    return attempt.record


def _with_information_gain(
    live: Runtime, iteration: int, groups: Sequence[Group], scores: Sequence[Score]
) -> list[Score]:
    live.policy.move_to(iteration - 1)
    reader = AnswerReader(
        live.policy.model,
        live.policy.tokenizer,
        live.protocol,
        LossSettings.of(live.settings),
        live.policy.max_context_tokens,
    )
    return with_information_gain(groups, scores, reader, live.settings.grpo, live.settings.reward.turn_discount)


def _retries_read(settings: Settings) -> list[str]:
    """Return what the scores of retries are for, where there are any; else nothing."""
    return [f"retries: {settings.rollout.retries_use}"] if settings.rollout.retries else []


def _passes_read(settings: Settings) -> list[str]:
    """Return how the policy's passes are cut, which moves their last bits, where the stage makes any; else nothing."""
    update = settings.update
    makes_passes = settings.reward.turn == "information_gain"
    return [f"passes: {update.max_tokens_per_microbatch} {update.head_chunk}"] if makes_passes else []
