"""Retries as the groups that they belong to, for what reads groups."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.records.retry import RetriedGroup
from schemas.records.rollout import Group


def as_groups(groups: Sequence[Group], retried: Sequence[RetriedGroup]) -> list[Group]:
    """Return the retries as groups of their own, with the id, the question and the plain prompt of theirs."""
    of_group = {group.id: group for group in groups}
    return [of_group[each.group_id].model_copy(update={"rollouts": each.rollouts}) for each in retried]
