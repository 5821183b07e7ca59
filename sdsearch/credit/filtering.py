"""Groups that teach the policy loss nothing: which they are, and how many are missing (grpo.filter).

DAPO (arXiv 2503.14476) samples on until a batch is full of groups with different rewards. Here the groups without stay
for the distillation, whose loss does not need an advantage.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.records.rollout import Group
from schemas.records.score import Score
from schemas.settings.root import GrpoSettings, RewardSettings
from sdsearch.credit.scoring import score_groups


def mark_filtered(scores: Sequence[Score], grpo: GrpoSettings) -> list[Score]:
    """Return the scores of whole groups, marked where no rollout of the group has an advantage; 'none' marks nothing.

    With retries `scores` holds theirs too: they are compared with their siblings, so that they count for the group.
    """
    if grpo.filter == "none":
        return list(scores)
    teaching = {score.group_id for score in scores if score.has_advantage}
    return [score.model_copy(update={"filtered": score.group_id not in teaching}) for score in scores]


def num_teaching(groups: Sequence[Group], reward: RewardSettings, grpo: GrpoSettings) -> int:
    """Return how many groups have different rewards; PluginError as of `score_groups`."""
    return len({score.group_id for score in score_groups(groups, reward, grpo) if score.has_advantage})
