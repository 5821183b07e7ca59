"""The retries of an iteration, sampled by the sample stage after its groups."""

from __future__ import annotations

from collections.abc import Sequence

from flows.run.live import Runtime
from flows.run.perform import Attempt
from schemas.records.hindsight import HindsightBlock
from schemas.records.question import Question
from schemas.records.retry import RetriedGroup
from schemas.records.rollout import Group
from sdsearch.credit.retries import retry_blocks
from sdsearch.sampling.rollouts import group_id_of


def sample_retries(live: Runtime, attempt: Attempt, groups: Sequence[Group], iteration: int) -> list[RetriedGroup]:
    """Sample `rollout.retries` rollouts of each group without a CORRECT one, by the same weights with its block.

    Seeds come from identity, as the siblings' do: a retry's place in the group follows theirs. Batches are those of
    the groups, and kept like them, so that an interrupted stage goes on with the same bits.
    """
    settings, loop = live.settings, live.rollout_loop(iteration - 1)
    rollout = settings.rollout
    blocks = retry_blocks(
        groups,
        settings=settings.hindsight,
        seed=settings.seed,
        tokenizer=live.policy.tokenizer,
        max_context_tokens=loop.limits.max_context_tokens,
        tags=live.protocol.tags,
    )
    questions = [group.question for group in groups if group.id in blocks]

    def block_for(question: Question, index: int) -> Sequence[int]:
        return blocks[group_id_of(iteration, question)].token_ids

    retried: list[RetriedGroup] = []
    for start in range(0, len(questions), rollout.questions_per_batch):
        name = f"retries-{start:05d}"
        if (kept := attempt.find_partial(name, RetriedGroup)) is None:
            sampled = loop.roll_out(
                questions[start : start + rollout.questions_per_batch],
                run_seed=settings.seed,
                iteration=iteration,
                policy_version=iteration - 1,
                group_size=rollout.retries,
                first_index=rollout.group_size,
                temperature=rollout.temperature,
                block_for=block_for,
            )
            kept = attempt.keep_partial(name, RetriedGroup, [_retried(group, blocks[group.id]) for group in sampled])
        retried += kept
    return retried


def _retried(sampled: Group, block: HindsightBlock) -> RetriedGroup:
    return RetriedGroup(
        group_id=sampled.id,
        block_text=block.text,
        block_token_ids=block.token_ids,
        rollouts=sampled.rollouts,
    )
