"""The hindsight block h(G): every sibling's queries, each marked by its outcome (paper, section 3.2).

Text first (attempts, lines), then tokens. The block goes inside the user turn before the task prompt; the
teacher's tokens after it are the student's own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, assert_never

from transformers import PreTrainedTokenizerBase

from schemas.records.hindsight import HindsightAttempt, HindsightBlock, Label, label_outcome
from schemas.records.rollout import Group, Rollout
from schemas.records.score import Score
from schemas.settings.root import HindsightSettings
from sdsearch.credit.block_variants import BlockVariant, Member, QueriesOnly, open_variant
from sdsearch.protocol.fitting import largest, num_pieces, shorten, shorten_all
from sdsearch.protocol.tokens import TAGS, encode_foreign, neutralise_tags
from sdsearch.seeds import derive_seed

_LABEL = re.compile(r"\([(\s]*((?:in)?correct)[)\s]*\)", re.IGNORECASE)


def neutralise(text: str, tags: tuple[str, ...] = TAGS) -> str:
    """Make foreign text safe inside a block: one line, no tags, no separator, no label."""
    flat = " ".join(text.split()).replace("|", "/")
    # Tags last: `<|search>` is one only after the line before.
    return neutralise_tags(_LABEL.sub(lambda match: match[1].lower(), flat), tags)


Render = Callable[[Sequence[HindsightAttempt]], str]


def render_block(attempts: Sequence[HindsightAttempt]) -> str:
    """Return the paper's block as text: the header, then a line an attempt in the given order."""
    return QueriesOnly().render(attempts)


class EncodedBlock(NamedTuple):
    """A block's text and tokens, the attempts as they stand in it, and what it lost to fit."""

    attempts: tuple[HindsightAttempt, ...]
    text: str
    token_ids: list[int]
    num_dropped: int
    num_shortened: int
    num_cut_tokens: int


def encode_block(
    tokenizer: PreTrainedTokenizerBase,
    attempts: Sequence[HindsightAttempt],
    max_tokens: int,
    render: Render = render_block,
    tags: tuple[str, ...] = TAGS,
) -> EncodedBlock:
    """Return the block that fits: the longest attempts are cut first, to a common length; labels stay whole.

    Where not even a mark an attempt has room, attempts leave from the end; without room for the header it is empty.
    """
    whole = encode_foreign(tokenizer, render(attempts), tags)
    if len(whole) <= max_tokens:
        return EncodedBlock(tuple(attempts), render(attempts), whole, 0, 0, 0)
    for kept in range(len(attempts), -1, -1):
        shown = _cut_evenly(tokenizer, attempts[:kept], max_tokens, render, tags)
        if shown is not None:
            token_ids = encode_foreign(tokenizer, render(shown), tags)
            num_shortened = sum(cut != full for cut, full in zip(shown, attempts, strict=False))
            lost = len(attempts) - kept, num_shortened, len(whole) - len(token_ids)
            return EncodedBlock(tuple(shown), render(shown), token_ids, *lost)
    return EncodedBlock((), "", [], len(attempts), 0, len(whole))


def _cut_evenly(
    tokenizer: PreTrainedTokenizerBase,
    attempts: Sequence[HindsightAttempt],
    max_tokens: int,
    render: Render,
    tags: tuple[str, ...],
) -> list[HindsightAttempt] | None:
    """Return the attempts cut to the largest common length with which they fit, None where they fit with none."""

    def cut(max_pieces: int) -> list[HindsightAttempt]:
        contents = [shorten_all(attempt.contents, max_pieces) for attempt in attempts]
        return [a.model_copy(update={"contents": shown}) for a, shown in zip(attempts, contents, strict=True)]

    def fits(max_pieces: int) -> bool:
        return len(encode_foreign(tokenizer, render(cut(max_pieces)), tags)) <= max_tokens

    longest = max((sum(map(num_pieces, attempt.contents)) for attempt in attempts), default=0)
    pieces = largest(fits, longest + 1)
    return None if pieces is None else cut(pieces)


def encode_documents(
    tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int, tags: tuple[str, ...] = TAGS
) -> EncodedBlock:
    """Return the block of a turn's documents, cut at its end where it is too long."""
    whole = encode_foreign(tokenizer, text, tags)
    if len(whole) <= max_tokens:
        return EncodedBlock((), text, whole, 0, 0, 0)

    def fits(max_pieces: int) -> bool:
        return len(encode_foreign(tokenizer, shorten(text, max_pieces), tags)) <= max_tokens

    pieces = largest(fits, num_pieces(text) + 1)
    text = "" if pieces is None else shorten(text, pieces)
    token_ids = encode_foreign(tokenizer, text, tags)
    return EncodedBlock((), text, token_ids, 0, 0, len(whole) - len(token_ids))


def build_blocks(
    group: Group,
    scores: Sequence[Score],
    *,
    settings: HindsightSettings,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    max_context_tokens: int,
    tags: tuple[str, ...] = TAGS,
) -> list[HindsightBlock]:
    """Return a group's blocks: one for all, or one a rollout or a turn where the settings ask for it.

    `scores` are the group's, in the order of its rollouts. A block never takes room that a rollout needs.
    """
    variant = open_variant(settings)
    labels = _labels(group, scores, settings, seed)
    outcomes = tuple(_outcomes(scores, settings))
    longest = len(group.prompt_token_ids) + max(len(rollout.token_ids) for rollout in group.rollouts)
    room = max(0, max_context_tokens - longest)
    max_tokens = room if settings.block_tokens is None else min(settings.block_tokens, room)
    blocks = []
    for focal_rollout, focal_turn, members in _views(group, scores, settings, variant):
        if focal_turn is None:
            attempts = [_attempt(group, r, scores[r.index], labels[r.index], settings, variant, tags) for r in members]
            encoded = encode_block(tokenizer, attempts, max_tokens, variant.render, tags)
        else:
            assert focal_rollout is not None, "a turn belongs to a rollout"
            shown = neutralise_tags(variant.shown_at(group.rollouts[focal_rollout], focal_turn), tags)
            encoded = encode_documents(tokenizer, shown, max_tokens, tags)
        blocks.append(
            HindsightBlock(
                group_id=group.id,
                focal_rollout=focal_rollout,
                focal_turn=focal_turn,
                attempts=encoded.attempts,
                num_dropped_attempts=encoded.num_dropped,
                num_shortened_attempts=encoded.num_shortened,
                num_cut_tokens=encoded.num_cut_tokens,
                homogeneous=len(set(outcomes)) == 1,
                outcomes=outcomes,
                text=encoded.text,
                token_ids=tuple(encoded.token_ids),
            )
        )
    return blocks


def correct_rollouts(scores: Sequence[Score], metric: str, rho: float) -> frozenset[str]:
    """Return the ids of the rollouts whose outcome is CORRECT: their `metric`, f1 or em, exceeds rho."""
    return frozenset(score.rollout_id for score in scores if label_outcome(getattr(score, metric), rho) == "CORRECT")


def _outcomes(scores: Sequence[Score], settings: HindsightSettings) -> list[Label]:
    return [label_outcome(getattr(score, settings.label_metric), settings.rho) for score in scores]


def _labels(group: Group, scores: Sequence[Score], settings: HindsightSettings, seed: int) -> Sequence[Label | None]:
    outcomes = _outcomes(scores, settings)
    match settings.labels:
        case "outcome":
            return outcomes
        case "none":
            return [None] * len(outcomes)
        case "shuffled":
            return random.Random(derive_seed(seed, "labels", group.id)).sample(outcomes, len(outcomes))
        case unknown:
            assert_never(unknown)


def _views(
    group: Group, scores: Sequence[Score], settings: HindsightSettings, variant: BlockVariant
) -> list[tuple[int | None, int | None, tuple[Rollout, ...]]]:
    """Return (focal rollout, focal turn, members) of each block that the group needs."""
    rollouts = group.rollouts
    if variant.of_turns:
        return [
            (rollout.index, turn, ())
            for rollout in rollouts
            for turn in range(len(rollout.turns))
            if variant.shown_at(rollout, turn)
        ]
    match settings.members:
        case "group":
            return [(None, None, rollouts)]
        case "correct_only":
            outcomes = _outcomes(scores, settings)
            return [(None, None, tuple(r for r in rollouts if outcomes[r.index] == "CORRECT"))]
        case "leave_one_out":
            return [(focal.index, None, tuple(r for r in rollouts if r is not focal)) for focal in rollouts]
        case "focal_only":
            return [(focal.index, None, (focal,)) for focal in rollouts]
        case unknown:
            assert_never(unknown)


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
    queries = rollout.queries if settings.unsent_queries == "drop" else rollout.written_queries
    texts = variant(Member(group, rollout, score, label, queries))
    contents = tuple(neutralise(text, tags) for text in texts)
    return HindsightAttempt(rollout_index=rollout.index, label=label, contents=contents)
