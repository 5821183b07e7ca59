"""Stage score: what each rollout earned, and its advantage in its group."""

from __future__ import annotations

from typing import Final

from flows.run.perform import StageRunner
from flows.run.stage_inputs import StageKind
from schemas.records.ledger import StageRecord
from schemas.records.rollout import Group
from schemas.records.score import Score
from sdsearch.credit.scoring import score_groups

SCORE: Final = StageKind("score", reads=("reward", "grpo", "hindsight"), code=(__name__,))


def score_rollouts(runner: StageRunner, iteration: int, sampled: StageRecord) -> StageRecord:
    """Score the rollouts and put them into the database."""
    with runner.attempt(SCORE, iteration, [sampled]) as attempt:
        if attempt.needed:
            groups = runner.files.read(sampled, "groups", Group)
            attempt.write("scores", Score, score_groups(groups, runner.settings.reward, runner.settings.grpo))
    return attempt.record
