"""The credit that a variant gives to each turn of stored rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flows.screen.plan import ScreenedVariant, ScreenPlan
from schemas.records.screen import ScreenedTurn, TurnCredit
from storage.database.connection import Database

_LEANINGS: Final = "SELECT rollout_id, turn_leanings FROM teacher_targets WHERE run = $run"
_ADVANTAGES: Final = """
    SELECT rollout_id, advantage FROM rollouts WHERE run = $run AND iteration BETWEEN $first AND $last
"""


def credit_of(
    variant: ScreenedVariant, plan: ScreenPlan, turns: Sequence[ScreenedTurn], database: Database
) -> list[TurnCredit]:
    """Return a variant's credit of each turn, in order.

    Plain GRPO: the rollout's advantage, the same for all its turns. With a teacher: its leaning l, tanh of the mean
    gated log-ratio of the turn's distilled tokens, which is what the loss pulls the policy to; 0 where it said nothing.
    With form 'advantage': A + alpha |A| l, what the turn's tokens get.
    """
    rows = database.query(_ADVANTAGES, {"run": plan.source.run, "first": plan.first, "last": plan.last}).to_pylist()
    advantages = {row["rollout_id"]: float(row["advantage"]) for row in rows}
    if variant.replay is None:
        values = [advantages[turn.rollout_id] for turn in turns]
    else:
        rows = database.query(_LEANINGS, {"run": variant.replay.run}).to_pylist()
        leanings = {row["rollout_id"]: row["turn_leanings"] for row in rows}
        values = [float((leanings.get(turn.rollout_id) or {turn.turn: 0.0})[turn.turn]) for turn in turns]
        if variant.settings.distillation.form == "advantage":
            reach = min(1.0, variant.settings.distillation.alpha)
            advantage = (advantages[turn.rollout_id] for turn in turns)
            values = [a + reach * abs(a) * leaning for a, leaning in zip(advantage, values, strict=True)]
    return [
        TurnCredit(variant=variant.name, rollout_id=turn.rollout_id, turn=turn.turn, credit=value)
        for turn, value in zip(turns, values, strict=True)
    ]
