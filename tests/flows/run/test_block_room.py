"""What is said of the room that hindsight blocks have, before a run and in it."""

from __future__ import annotations

import pytest

from flows.run.block_room import block_room, told_of_cuts
from flows.settings.load import load_settings
from schemas.records.hindsight import HindsightAttempt, HindsightBlock
from schemas.settings.root import Settings

QUICK_LONGEST = 256 + 5 * 48 + 4 * 160


def settings_of(*lines: str) -> Settings:
    return load_settings("quickstart", ["distillation.warmup_iterations=0", *lines])


def test_whole_trajectories_are_measured_at_their_longest() -> None:
    """Five rollouts of 880 tokens do not fit 2,048 beside one of 1,136; in a long context they do."""
    room, lacking = block_room(settings_of("hindsight.masking=none"), 2048)
    assert room == 2048 - QUICK_LONGEST
    assert lacking is not None
    assert f"may need {5 * (QUICK_LONGEST - 256 + 16)} tokens" in lacking
    assert f"room for {room}:" in lacking
    assert "the model's context of 2048 tokens leaves no more beside a rollout of 1136" in lacking
    assert block_room(settings_of("hindsight.masking=none"), 32_768) == (32_768 - QUICK_LONGEST, None)
    one = settings_of("hindsight.masking=none", "hindsight.members=focal_only")
    assert block_room(one, 2048) == (2048 - QUICK_LONGEST, None)


def test_a_budget_of_ones_own_is_named() -> None:
    room, lacking = block_room(settings_of("hindsight.masking=none", "hindsight.max_block_tokens=1024"), 32_768)
    assert room == 1024
    assert lacking is not None
    assert "room for 1024:" in lacking
    assert "set hindsight.max_block_tokens higher, or to 0" in lacking


@pytest.mark.parametrize(("context", "fits"), [(2048, True), (QUICK_LONGEST + 50, False), (100, False)])
def test_queries_need_room_for_the_labels(context: int, fits: bool) -> None:
    room, lacking = block_room(settings_of(), context)
    assert (lacking is None) == fits
    assert room == max(0, min(1024, context - QUICK_LONGEST))


def block(num_cut: int, shortened: int = 0, dropped: int = 0) -> HindsightBlock:
    attempt = HindsightAttempt(rollout_index=0, label="CORRECT", contents=("river …",))
    return HindsightBlock(
        group_id="g",
        focal_rollout=None,
        focal_turn=None,
        attempts=(attempt,) * (5 - dropped),
        num_dropped_attempts=dropped,
        num_shortened_attempts=shortened,
        num_cut_tokens=num_cut,
        homogeneous=False,
        text="t",
        token_ids=(1,) * 30,
    )


def test_what_was_cut_is_told_as_a_share() -> None:
    assert told_of_cuts(3, [block(0), block(0)]) is None
    told = told_of_cuts(3, [block(0), block(20, 3, 1)])
    assert told is not None
    assert told.startswith(
        "iteration 3: 25.0% of the hindsight blocks' tokens did not fit, 3 of 10 attempts shortened, 1"
    )


def test_blocks_of_earlier_files_have_lost_nothing_more_than_they_say() -> None:
    """Files that were written before cuts were counted can be read."""
    stored = block(0, dropped=2).model_dump(exclude={"num_shortened_attempts", "num_cut_tokens"})
    read = HindsightBlock.model_validate(stored)
    assert (read.num_dropped_attempts, read.num_shortened_attempts, read.num_cut_tokens) == (2, 0, 0)
