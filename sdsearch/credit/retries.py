"""Retries of groups that have no CORRECT rollout: which groups, under which block, and what their rollouts earn.

The policy that sampled the group samples on with the group's hindsight block before the task prompt, as its teacher
reads it. What it then writes is another policy's to the student, who never sees the block: an off-policy rollout.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from schemas.records.hindsight import HindsightBlock
from schemas.records.retry import RetriedGroup
from schemas.records.rollout import Group
from schemas.records.score import Score
from schemas.settings.root import GrpoSettings, HindsightSettings, RetriesUse, RewardSettings
from sdsearch.credit.hindsight import build_blocks, correct_rollouts
from sdsearch.credit.scoring import score_groups, scores_by_group


def retry_blocks(
    groups: Sequence[Group],
    *,
    settings: HindsightSettings,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    max_context_tokens: int,
    tags: tuple[str, ...],
) -> dict[str, HindsightBlock]:
    """Return the block of each group without a CORRECT rollout, by the group's id.

    It is the paper's block, one for the group: all siblings with their queries, marked as the settings say. Ours:
    settings that change who is shown to whom (members, masking, memory, own_query, contrast) do not change it.
    """
    scores = score_groups(groups, RewardSettings(), GrpoSettings())  # EM and F1, which decide what is CORRECT.
    correct = correct_rollouts(scores, settings.label_metric, settings.rho)
    paper = settings.model_copy(
        update={"members": "group", "masking": "queries", "memory": 0, "own_query": "keep", "contrast": "none"}
    )
    of_group = scores_by_group(scores)
    blocks = {}
    for group in groups:
        if not any(rollout.id in correct for rollout in group.rollouts):
            (blocks[group.id],) = build_blocks(
                group,
                of_group[group.id],
                settings=paper,
                seed=seed,
                tokenizer=tokenizer,
                max_context_tokens=max_context_tokens,
                tags=tags,
            )
    return blocks


def score_with_retries(
    groups: Sequence[Group],
    retried: Sequence[RetriedGroup],
    use: RetriesUse,
    reward: RewardSettings,
    grpo: GrpoSettings,
) -> tuple[list[Score], list[Score]]:
    """Return the scores of all siblings, and those of all retries.

    off_policy: mean and deviation of the advantages are over siblings and retries together, so a group that failed
    alike learns where a retry succeeds (mixed-policy GRPO; LUFFY, arXiv 2504.14945). distillation: the siblings'
    advantages are what they are without retries, and a retry has none.
    """
    retries_of = {each.group_id: each.rollouts for each in retried}
    joint = [group.model_copy(update={"rollouts": group.rollouts + retries_of.get(group.id, ())}) for group in groups]
    retry_ids = {rollout.id for rollouts in retries_of.values() for rollout in rollouts}
    scored = score_groups(joint, reward, grpo)
    of_retries = [score for score in scored if score.rollout_id in retry_ids]
    if use == "distillation":
        return score_groups(groups, reward, grpo), [s.model_copy(update={"advantage": 0.0}) for s in of_retries]
    return [score for score in scored if score.rollout_id not in retry_ids], of_retries
