"""The hindsight block h(G): every sibling's queries, each marked by its outcome (paper, section 3.2).

Text first (attempts, lines), then tokens. The block goes inside the user turn before the task prompt; the
teacher's tokens after it are the student's own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, assert_never, get_args

from transformers import PreTrainedTokenizerBase

from schemas.records.hindsight import HindsightAttempt, HindsightBlock, Label, label_outcome
from schemas.records.rollout import Group, Rollout
from schemas.records.score import Score
from schemas.settings.root import HindsightSettings
from sdsearch.credit.block_text import EncodedBlock, Render, encode_block, encode_documents, neutralise, with_answer
from sdsearch.credit.block_variants import BlockVariant, Member, open_variant
from sdsearch.credit.contrast import encode_pair
from sdsearch.credit.own_query import replacement, with_replaced
from sdsearch.protocol.tokens import TAGS, encode_foreign, neutralise_tags
from sdsearch.seeds import derive_seed


class ScoredGroup(NamedTuple):
    """A group with its scores, in the order of its rollouts."""

    group: Group
    scores: Sequence[Score]


class _View(NamedTuple):
    """What a block is for, and the siblings that it shows."""

    focal_rollout: int | None
    focal_turn: int | None
    members: tuple[Rollout, ...]


def build_blocks(
    group: Group,
    scores: Sequence[Score],
    *,
    settings: HindsightSettings,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    max_context_tokens: int,
    tags: tuple[str, ...] = TAGS,
    memory: Sequence[ScoredGroup] = (),
) -> list[HindsightBlock]:
    """Return a group's blocks: one for all, or one a rollout or a turn where the settings ask for it.

    `scores` are the group's, in the order of its rollouts. A block never takes room that a rollout needs.
    memory: earlier groups of the same question whose rollouts the blocks show after the siblings, in the given order.
    """
    longest = len(group.prompt_token_ids) + max(len(rollout.token_ids) for rollout in group.rollouts)
    room = max(0, max_context_tokens - longest)
    max_tokens = room if settings.block_tokens is None else min(settings.block_tokens, room)
    builder = _Builder(ScoredGroup(group, scores), memory, settings, seed, tokenizer, max_tokens, tags)
    return list(builder.blocks())


@dataclass(frozen=True)
class _Builder:
    """Makes the blocks of one group."""

    own: ScoredGroup
    memory: Sequence[ScoredGroup]
    settings: HindsightSettings
    seed: int
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    tags: tuple[str, ...]

    def blocks(self) -> Iterator[HindsightBlock]:
        variant, settings = open_variant(self.settings), self.settings
        golden = self.own.group.question.golden_answers if settings.answer else ()
        render = with_answer(variant.render, golden, self.tags)
        remembered = [attempt for earlier in self.memory for attempt in self._remembered(earlier, variant)]
        homogeneous = is_homogeneous([self.own, *self.memory], settings)
        for view in _views(*self.own, settings, variant):
            contrast_text, contrast_ids = "", list[int]()
            if variant.of_turns:
                encoded = self._documents(view, variant)
            else:
                attempts = [*self._attempts(self.own, view.members, variant), *remembered]
                if settings.own_query != "keep":
                    attempts = self._without_own(view, attempts)
                    if not attempts:
                        continue
                encoded, contrast_text, contrast_ids = self._encoded(attempts, render)
            yield HindsightBlock(
                group_id=self.own.group.id,
                focal_rollout=view.focal_rollout,
                focal_turn=view.focal_turn,
                attempts=encoded.attempts,
                num_dropped_attempts=encoded.num_dropped,
                num_shortened_attempts=encoded.num_shortened,
                num_cut_tokens=encoded.num_cut_tokens,
                homogeneous=homogeneous,
                outcomes=tuple(_outcomes(self.own.scores, settings)),
                text=encoded.text,
                token_ids=tuple(encoded.token_ids),
                contrast_text=contrast_text,
                contrast_token_ids=tuple(contrast_ids),
            )

    def _encoded(self, attempts: Sequence[HindsightAttempt], render: Render) -> tuple[EncodedBlock, str, list[int]]:
        if self.settings.contrast == "none":
            return encode_block(self.tokenizer, attempts, self.max_tokens, render, self.tags), "", []
        return encode_pair(self.tokenizer, attempts, self.max_tokens, render, self.tags, self.settings.contrast)

    def _documents(self, view: _View, variant: BlockVariant) -> EncodedBlock:
        assert view.focal_rollout is not None, "a turn belongs to a rollout"
        assert view.focal_turn is not None, "documents are a turn's"
        shown = variant.shown_at(self.own.group.rollouts[view.focal_rollout], view.focal_turn)
        return encode_documents(self.tokenizer, neutralise_tags(shown, self.tags), self.max_tokens, self.tags)

    def _remembered(self, earlier: ScoredGroup, variant: BlockVariant) -> list[HindsightAttempt]:
        members = earlier.group.rollouts
        if self.settings.members == "correct_only":
            members = _correct(earlier, self.settings)
        sampled_in = {"sampled_in": earlier.group.iteration}
        return [attempt.model_copy(update=sampled_in) for attempt in self._attempts(earlier, members, variant)]

    def _attempts(
        self, scored: ScoredGroup, members: Sequence[Rollout], variant: BlockVariant
    ) -> list[HindsightAttempt]:
        labels = _labels(*scored, self.settings, self.seed)
        return [
            _attempt(scored.group, r, scored.scores[r.index], labels[r.index], self.settings, variant, self.tags)
            for r in members
        ]

    def _without_own(self, view: _View, attempts: Sequence[HindsightAttempt]) -> list[HindsightAttempt]:
        """Return the attempts without the query of the view's turn; none where it cannot be replaced."""
        assert self.settings.own_query != "keep", "asked for otherwise"
        assert view.focal_rollout is not None, "a query belongs to a rollout"
        assert view.focal_turn is not None, "a query belongs to a turn"
        group, outcomes = self.own.group, _outcomes(self.own.scores, self.settings)
        focal = group.rollouts[view.focal_rollout]
        query = neutralise(_queries_by_turn(focal, self.settings)[view.focal_turn], self.tags)
        same_label = [
            neutralise(text, self.tags)
            for rollout in group.rollouts
            if outcomes[rollout.index] == outcomes[focal.index]
            for text in _queries(rollout, self.settings)
        ]
        seed = derive_seed(self.seed, "own query", focal.id, view.focal_turn)
        instead = replacement(query, self.settings.own_query, same_label, self._num_tokens, seed)
        return [] if instead is None else with_replaced(attempts, query, instead)

    def _num_tokens(self, query: str) -> int:
        return len(encode_foreign(self.tokenizer, f" {query}", self.tags))


def is_homogeneous(groups: Sequence[ScoredGroup], settings: HindsightSettings) -> bool:
    """Whether all rollouts of these groups have the same outcome."""
    return len({outcome for scored in groups for outcome in _outcomes(scored.scores, settings)}) == 1


def correct_rollouts(scores: Sequence[Score], metric: str, rho: float) -> frozenset[str]:
    """Return the ids of the rollouts whose outcome is CORRECT: their `metric`, f1 or em, exceeds rho."""
    return frozenset(score.rollout_id for score in scores if label_outcome(getattr(score, metric), rho) == "CORRECT")


def _outcomes(scores: Sequence[Score], settings: HindsightSettings) -> list[Label]:
    return [label_outcome(getattr(score, settings.label_metric), settings.rho) for score in scores]


def _correct(scored: ScoredGroup, settings: HindsightSettings) -> tuple[Rollout, ...]:
    outcomes = _outcomes(scored.scores, settings)
    return tuple(r for r in scored.group.rollouts if outcomes[r.index] == "CORRECT")


def _labels(group: Group, scores: Sequence[Score], settings: HindsightSettings, seed: int) -> Sequence[Label | None]:
    outcomes = _outcomes(scores, settings)
    match settings.labels:
        case "outcome":
            return outcomes
        case "none":
            return [None] * len(outcomes)
        case "shuffled":
            return random.Random(derive_seed(seed, "labels", group.id)).sample(outcomes, len(outcomes))
        case "random":
            return random.Random(derive_seed(seed, "labels", group.id)).choices(get_args(Label), k=len(outcomes))
        case unknown:
            assert_never(unknown)


def _views(
    group: Group, scores: Sequence[Score], settings: HindsightSettings, variant: BlockVariant
) -> Iterator[_View]:
    """Yield what each block that the group needs is for: all, a rollout, or one of its turns."""
    rollouts = group.rollouts
    if variant.of_turns:
        for rollout in rollouts:
            for turn in range(len(rollout.turns)):
                if variant.shown_at(rollout, turn):
                    yield _View(rollout.index, turn, ())
        return
    for view in _views_of_siblings(ScoredGroup(group, scores), settings):
        if settings.own_query == "keep":
            yield view
            continue
        for rollout in rollouts if view.focal_rollout is None else (rollouts[view.focal_rollout],):
            for turn in _queries_by_turn(rollout, settings):
                yield _View(rollout.index, turn, view.members)


def _views_of_siblings(scored: ScoredGroup, settings: HindsightSettings) -> list[_View]:
    rollouts = scored.group.rollouts
    match settings.members:
        case "group":
            return [_View(None, None, rollouts)]
        case "correct_only":
            return [_View(None, None, _correct(scored, settings))]
        case "leave_one_out":
            return [_View(focal.index, None, tuple(r for r in rollouts if r is not focal)) for focal in rollouts]
        case "focal_only":
            return [_View(focal.index, None, (focal,)) for focal in rollouts]
        case unknown:
            assert_never(unknown)


def _queries(rollout: Rollout, settings: HindsightSettings) -> tuple[str, ...]:
    return rollout.queries if settings.unsent_queries == "drop" else rollout.written_queries


def _queries_by_turn(rollout: Rollout, settings: HindsightSettings) -> dict[int, str]:
    """Return the same queries by their turns."""
    shown = [turn.searched_query if settings.unsent_queries == "drop" else turn.written_query for turn in rollout.turns]
    return {index: query for index, query in enumerate(shown) if query is not None}


def _attempt(
    group: Group,
    rollout: Rollout,
    score: Score,
    label: Label | None,
    settings: HindsightSettings,
    variant: BlockVariant,
    tags: tuple[str, ...],
) -> HindsightAttempt:
    """Return what a block shows of a sibling, made harmless: a block's own lines are no one else's to write."""
    texts = variant(Member(group, rollout, score, label, _queries(rollout, settings)))
    contents = tuple(neutralise(text, tags) for text in texts)
    return HindsightAttempt(rollout_index=rollout.index, label=label, contents=contents)
