"""Stage hindsight: the block of each group that its teacher is shown."""

from __future__ import annotations

from typing import Final

from flows.run.block_room import told_of_cuts
from flows.run.live import Runtime
from flows.run.perform import StageRunner
from flows.run.stage_inputs import StageKind
from flows.training.memory import Memory, remember
from schemas.records.hindsight import HindsightBlock
from schemas.records.ledger import StageRecord
from schemas.records.rollout import Group
from schemas.records.score import Score
from sdsearch.credit.hindsight import build_blocks
from sdsearch.credit.scoring import scores_by_group

HINDSIGHT: Final = StageKind(
    "hindsight",
    reads=("seed", "hindsight", "distillation.enabled", "rollout.protocol", "rollout.protocol_options"),
    code=(__name__, "flows.training.memory"),
)


def build_hindsight(
    live: Runtime, runner: StageRunner, iteration: int, sampled: StageRecord, scored: StageRecord
) -> StageRecord:
    """Build the groups' hindsight blocks; none when distillation is off.

    What hindsight.memory reads of earlier iterations is an input of the stage.
    """
    settings = runner.settings
    memory = Memory()
    if settings.distillation.enabled:
        memory = remember(runner.storage, runner.files, settings.hindsight, sampled, scored)
    with runner.attempt(HINDSIGHT, iteration, [sampled, scored, *memory.read]) as attempt:
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
                    memory=memory.of_question.get(group.question.key, ()),
                )
            ]
            if (cuts := told_of_cuts(iteration, blocks)) is not None:
                runner.note_once("cuts", cuts)
            attempt.write("blocks", HindsightBlock, blocks)
    return attempt.record
