"""What the teacher is asked about: distilled tokens of a rollout, under a hindsight block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from schemas.records.hindsight import HindsightBlock, Label
from schemas.records.rollout import Group, Rollout
from schemas.settings.root import DistillationSettings, HindsightSettings
from sdsearch.credit.positions import distilled_positions, turn_of_position
from sdsearch.model.batching import TokenSequence


@dataclass(frozen=True)
class View:
    """Some distilled tokens of one rollout under one block."""

    group: Group
    rollout: Rollout
    positions: tuple[int, ...]
    block: HindsightBlock

    @property
    def outcome(self) -> Label | None:
        """CORRECT or INCORRECT; None where the block does not say: of a retry, or made by an earlier version."""
        outcomes = self.block.outcomes
        return outcomes[self.rollout.index] if self.rollout.index < len(outcomes) else None

    @cached_property
    def student(self) -> TokenSequence:
        """What the student reads."""
        return TokenSequence(self.group.prompt_token_ids, self.rollout.token_ids, self.positions)

    @cached_property
    def teacher(self) -> TokenSequence:
        """What the teacher reads: the block too."""
        return self._under(self.block.token_ids)

    @cached_property
    def contrast(self) -> TokenSequence:
        """What the contrast's pass reads: the other block."""
        return self._under(self.block.contrast_token_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens that all its passes see."""
        contrast = self.contrast.num_tokens if self.block.contrast_token_ids else 0
        return self.student.num_tokens + self.teacher.num_tokens + contrast

    def _under(self, block_ids: Sequence[int]) -> TokenSequence:
        prompt, offset = self.group.prompt_token_ids, self.group.block_offset
        context = (*prompt[:offset], *block_ids, *prompt[offset:])
        return TokenSequence(context, self.rollout.token_ids, self.positions)


def views_of(
    groups: Sequence[Group],
    blocks: Sequence[HindsightBlock],
    hindsight: HindsightSettings,
    distillation: DistillationSettings,
) -> Iterator[View]:
    """Yield what is distilled, groups and rollouts in order; empty blocks teach nothing."""
    by_group: dict[str, list[HindsightBlock]] = {}
    for block in blocks:
        shows = hindsight.answer or block.attempts or block.focal_turn is not None
        empty = not (block.token_ids and shows)
        if not empty and not (hindsight.homogeneous == "skip" and block.homogeneous):
            by_group.setdefault(block.group_id, []).append(block)
    for group in groups:
        for rollout in group.rollouts:
            turn_of = turn_of_position(rollout)
            for block in by_group.get(group.id, []):
                if block.focal_rollout not in (None, rollout.index):
                    continue
                read = distilled_positions(rollout, distillation.positions, hindsight.unsent_queries)
                positions = tuple(position for position in read if block.focal_turn in (None, turn_of[position]))
                if positions:
                    yield View(group, rollout, positions, block)


def by_rollout(views: Sequence[View]) -> Iterator[list[int]]:
    """Yield the indices of each rollout's views; a rollout's views stand together, its positions ascending."""
    start = 0
    for end in range(1, len(views) + 1):
        if end == len(views) or views[end].rollout is not views[start].rollout:
            yield list(range(start, end))
            start = end
