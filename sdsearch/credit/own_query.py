"""How much of the teacher's lift is copying: blocks in which the query that the teacher judges is left out or replaced.

Such a block belongs to one query, and each text in it that equals the query is changed, siblings' too. Its number of
attempts, their labels and their number of queries stay. A diagnostic of ours, and a way to train without copying.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal, assert_never

from schemas.records.hindsight import HindsightAttempt
from sdsearch.protocol.fitting import MARK

OwnQuery = Literal["drop", "paraphrase"]
_TRIES = 20


def replacement(
    query: str, how: OwnQuery, same_label: Sequence[str], num_tokens: Callable[[str], int], seed: int
) -> str | None:
    """Return what stands in a query's place: a mark, or a paraphrase with as many tokens; None where there is none.

    A paraphrase is the first other query of `same_label` (those of the group's rollouts with the same outcome) that is
    as long; where none is, the query's own words in another order, drawn by `seed`.
    """
    match how:
        case "drop":
            return MARK
        case "paraphrase":
            length = num_tokens(query)
            others = (*same_label, *_shuffles(query, seed))
            return next((other for other in others if other != query and num_tokens(other) == length), None)
        case unknown:
            assert_never(unknown)


def _shuffles(query: str, seed: int) -> list[str]:
    words, generator = query.split(), random.Random(seed)
    return [" ".join(generator.sample(words, len(words))) for _ in range(_TRIES)]


def with_replaced(attempts: Sequence[HindsightAttempt], query: str, instead: str) -> list[HindsightAttempt]:
    """Return the attempts with another text in each place where the query stands."""
    return [
        attempt.model_copy(update={"contents": tuple(instead if text == query else text for text in attempt.contents)})
        for attempt in attempts
    ]
