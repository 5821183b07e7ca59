"""What a hindsight block shows: the port that a plugin fills, the paper's block, and the two of its ablations."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

from schemas.base import Section
from schemas.records.hindsight import HindsightAttempt, Label
from schemas.records.rollout import Group, Rollout
from schemas.records.score import Score
from schemas.settings.root import HindsightSettings
from sdsearch.plugins import open_plugin

HEADER = "Earlier attempts at this question. They inform the next search, not the answer.\n"


class Member(NamedTuple):
    """A sibling that a block shows."""

    group: Group
    rollout: Rollout
    score: Score
    label: Label | None  # None where the settings show no labels.
    queries: tuple[str, ...]  # Its queries; those that were never sent as hindsight.unsent_queries says.


class BlockVariant(Section):
    """What a block shows of the group. A plugin derives from this class; its fields are its settings.

    A plain function of a member serves too. Whatever is returned, tags, labels, line breaks and separators in it are
    made harmless, and the block is cut to fit.
    """

    header: ClassVar[str] = HEADER
    of_turns: ClassVar[bool] = False  # True: a block for each turn of each rollout, with the text of `shown_at` alone.

    @abstractmethod
    def __call__(self, member: Member) -> Sequence[str]:
        """Return the texts that stand in a sibling's line, in order."""

    def line(self, number: int, attempt: HindsightAttempt) -> str:
        """Return a sibling's line: `Attempt 2 (CORRECT): first query | second query`."""
        label = "" if attempt.label is None else f" ({attempt.label})"
        contents = " | ".join(attempt.contents) if attempt.contents else "no search"
        return f"Attempt {number}{label}: {contents}\n"

    def render(self, attempts: Sequence[HindsightAttempt]) -> str:
        """Return the block's text: the header, then a line an attempt in the given order."""
        return self.header + "".join(self.line(number, attempt) for number, attempt in enumerate(attempts, 1)) + "\n"

    def shown_at(self, rollout: Rollout, turn: int) -> str:
        """Return the text of a turn's own block, empty for no block; asked where `of_turns` is true."""
        return ""


class QueriesOnly(BlockVariant):
    """The siblings' queries: neither their reasoning nor the documents they saw (paper)."""

    def __call__(self, member: Member) -> Sequence[str]:
        """Return the queries in order."""
        return member.queries


class WholeTrajectories(BlockVariant):
    """All that the siblings wrote and saw: no future masking (paper's ablation)."""

    def __call__(self, member: Member) -> Sequence[str]:
        """Return each turn's text and the reply to it."""
        texts = [
            [turn.generation.text, turn.observation.text if turn.observation else ""] for turn in member.rollout.turns
        ]
        return [text for pair in texts for text in pair if text]


class CurrentDocuments(BlockVariant):
    """The documents that the focal turn's own search brings, and no siblings (paper's ablation)."""

    of_turns: ClassVar[bool] = True

    def __call__(self, member: Member) -> Sequence[str]:
        """Return nothing: no sibling is shown."""
        return ()

    def shown_at(self, rollout: Rollout, turn: int) -> str:
        """Return the reply to a turn that searched."""
        observation = rollout.turns[turn].observation
        return observation.text if observation and observation.kind == "documents" else ""


class FunctionVariant(BlockVariant):
    """The paper's form of a block around what a plain function returns."""

    function: Callable[[Member], Sequence[str]]

    def __call__(self, member: Member) -> Sequence[str]:
        """Return what the function does."""
        return self.function(member)


def open_variant(settings: HindsightSettings) -> BlockVariant:
    """Return the variant that the settings name; PluginError where it cannot be used."""
    opened = open_plugin("block", settings.masking, settings.masking_options)
    variant: BlockVariant = FunctionVariant(function=opened) if inspect.isfunction(opened) else opened
    return variant
