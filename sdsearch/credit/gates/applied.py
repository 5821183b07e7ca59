"""What the gate leaves of a rollout's distilled tokens, and what the teacher says of its turns, in its pointer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from schemas.errors import UserError
from schemas.records.hindsight import Label
from schemas.records.teacher import TeacherTargets
from sdsearch.credit.gates.ports import GatedTokens, GateFunction
from sdsearch.credit.readings import Told
from sdsearch.credit.turn_advantage import turn_leanings


def gated(
    pointer: TeacherTargets,
    said: Sequence[Told],
    turn_of: Sequence[int],
    gate: GateFunction | None,
    outcome: Label | None,
) -> TeacherTargets:
    """Return a rollout's pointer with the gates of its tokens (none without a gate) and the leanings of its turns.

    said: what both passes say of each distilled token. turn_of: the turn of each token after the prompt. outcome: the
    rollout's, as its block says; UserError for a gate over blocks of an earlier version, which do not say it.
    """
    turns = [turn_of[position] for position in pointer.positions]
    ratios = [each.numbers[0] - each.numbers[1] for each in said]
    gates: tuple[float, ...] = ()
    if gate is not None:
        if outcome is None:
            raise UserError(
                f"rollout '{pointer.rollout_id}': its hindsight block was made by an earlier version and does not tell "
                "outcomes, which gates are given; build the blocks again (a replay does), or set distillation.gate = "
                "'none'"
            )
        tokens = GatedTokens(
            log_ratio_Q=torch.tensor(ratios, dtype=torch.float64),
            jsd_Q=torch.tensor([each.numbers[2] for each in said], dtype=torch.float64),
            turn_Q=torch.tensor(turns),
            is_correct=outcome == "CORRECT",
        )
        gates = tuple(gate(tokens).tolist())
    leanings = turn_leanings(ratios, gates or (1.0,) * len(ratios), turns, turn_of[-1] + 1)
    return pointer.model_copy(update={"gates": gates, "turn_leanings": leanings})
