"""Whether hindsight blocks have the room that they need: asked before a run begins, and told when one is cut."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.records.hindsight import HindsightBlock
from schemas.settings.root import Settings

_LINE_TOKENS = 16  # The least that an attempt's line takes: its number, its label, a mark.


def block_room(settings: Settings, context_tokens: int) -> tuple[int, str | None]:
    """Return the longest block beside a rollout of the longest kind, and a sentence where that may be too little.

    Whole trajectories are measured at their longest, queries only by the attempts' labels: they are far shorter than
    the caps allow.
    """
    hindsight, longest = settings.hindsight, settings.longest_conversation
    left = max(0, context_tokens - longest)
    room = left if hindsight.block_tokens is None else min(left, hindsight.block_tokens)
    needed = _needed(settings)
    if room >= needed:
        return room, None
    return room, (
        f"a hindsight block may need {needed} tokens (hindsight.masking '{hindsight.masking}') and has room for "
        f"{room}: longer ones are cut, the longest attempts first, and cut_token_share in v_iterations says how much; "
        f"{_remedy(settings, context_tokens, limited_by_context=room == left)}"
    )


def _remedy(settings: Settings, context_tokens: int, *, limited_by_context: bool) -> str:
    if not limited_by_context:
        return "set hindsight.max_block_tokens higher, or to 0 where the model's context is to be the only bound"
    return (
        f"the model's context of {context_tokens} tokens leaves no more beside a rollout of "
        f"{settings.longest_conversation}: lower rollout.max_new_tokens or rollout.max_observation_tokens, or take a "
        "model with a longer context"
    )


def _needed(settings: Settings) -> int:
    rollout, members = settings.rollout, settings.hindsight.members
    attempts = {"focal_only": 1, "leave_one_out": rollout.group_size - 1}.get(members, rollout.group_size)
    match settings.hindsight.masking:
        case "none":
            return attempts * (settings.longest_conversation - rollout.max_prompt_tokens + _LINE_TOKENS)
        case "current_documents":
            return rollout.max_observation_tokens
        case _:  # Queries, and whatever a plugin shows: of that only the lines' beginnings are known.
            return (attempts + 2) * _LINE_TOKENS


def told_of_cuts(iteration: int, blocks: Sequence[HindsightBlock]) -> str | None:
    """Return a sentence when an iteration's blocks did not fit, None when all did."""
    num_cut = sum(block.num_cut_tokens for block in blocks)
    if not num_cut:
        return None
    whole = num_cut + sum(len(block.token_ids) for block in blocks)
    shortened = sum(block.num_shortened_attempts for block in blocks)
    dropped = sum(block.num_dropped_attempts for block in blocks)
    attempts = dropped + sum(len(block.attempts) for block in blocks)
    what = f", {shortened} of {attempts} attempts shortened, {dropped} left out" if attempts else ""
    return (
        f"iteration {iteration}: {num_cut / whole:.1%} of the hindsight blocks' tokens did not fit{what}; later "
        "iterations are counted in v_iterations (cut_token_share, shortened_attempt_share, dropped_attempt_share)"
    )
