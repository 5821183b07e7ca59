"""Exact match, F1 and reward, as SQuAD normalises and AutoRefine scores."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from schemas.records.passage import Passage
from schemas.records.rollout import Group, Rollout
from schemas.records.score import Score
from schemas.settings.root import GrpoSettings, RewardSettings
from sdsearch.credit.advantage import group_advantages
from sdsearch.unspaced import has_unspaced

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})


def normalise_answer(text: str) -> str:
    """Lower-case, strip punctuation, drop a/an/the, squeeze blanks (SQuAD)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def normalises_to_nothing(text: str) -> bool:
    """True for a text of nothing but articles and punctuation, such as 'A', 'The The' or '?'."""
    return not normalise_answer(text)


def exact_match(answer: str | None, golden_answers: Sequence[str]) -> float:
    """Return 1.0 when the normalised answer equals a golden one, else 0.0; no answer scores 0."""
    if answer is None:
        return 0.0
    return float(any(ours == theirs for ours, theirs in (_comparable(answer, golden) for golden in golden_answers)))


def f1_score(answer: str | None, golden_answers: Sequence[str]) -> float:
    """Return the best token F1 over the golden answers, in [0, 1]; no answer scores 0."""
    return 0.0 if answer is None else max(_f1(answer, golden) for golden in golden_answers)


def _f1(answer: str, golden: str) -> float:
    ours, theirs = _comparable(answer, golden)
    if ours != theirs and (ours in _CLOSED_ANSWERS or theirs in _CLOSED_ANSWERS):
        return 0.0
    num_common = sum((Counter(ours.split()) & Counter(theirs.split())).values())
    if num_common == 0:
        return 0.0
    precision, recall = num_common / len(ours.split()), num_common / len(theirs.split())
    return 2 * precision * recall / (precision + recall)


def _comparable(answer: str, golden: str) -> tuple[str, str]:
    """Return both texts as they are compared: as SQuAD normalises, unless nothing is left of the golden answer.

    Of such a one the articles are kept, and the punctuation too where there is nothing else: SQuAD's rules would call
    any article right for the golden answer 'A', and give the right one an F1 of 0.
    """
    for normalise in (normalise_answer, _without_punctuation, _squeezed):
        if theirs := normalise(golden):
            return normalise(answer), theirs
    return "", ""  # Blank golden answers are refused when they are read.


def _without_punctuation(text: str) -> str:
    return _squeezed(text.translate(_PUNCTUATION))


def _squeezed(text: str) -> str:
    return " ".join(text.lower().split())


def contains_answer(passage: Passage, golden_answers: Sequence[str]) -> bool:
    """True when the passage's normalised words hold a golden answer's, whole words only.

    In scripts without blanks between words an answer may stand anywhere. A golden answer that normalises to nothing is
    in no passage: its article would be in nearly all.
    """
    words = f" {normalise_answer(passage.contents)} "
    golden = [normalise_answer(answer) for answer in golden_answers]
    return any(answer and f"{_edge(answer[0])}{answer}{_edge(answer[-1])}" in words for answer in golden)


def _edge(character: str) -> str:
    return "" if has_unspaced(character) else " "


def golden_hits(rollout: Rollout, golden_answers: Sequence[str]) -> tuple[tuple[bool, ...], ...]:
    """Return for each search of a rollout, and each passage it found, whether the passage contains a golden answer."""
    return tuple(
        tuple(contains_answer(hit.passage, golden_answers) for hit in turn.hits)
        for turn in rollout.turns
        if turn.searched_query is not None
    )


def score_groups(groups: Sequence[Group], reward: RewardSettings, grpo: GrpoSettings) -> list[Score]:
    """Return every rollout's score and advantage, in order; the format bonus enters the reward alone."""
    measured = [[_measure(rollout, group.question.golden_answers) for rollout in group.rollouts] for group in groups]
    rewards = [
        [m[reward.metric] + reward.format_bonus * r.valid_format for m, r in zip(row, group.rollouts, strict=True)]
        for row, group in zip(measured, groups, strict=True)
    ]
    advantages = group_advantages(rewards, grpo.advantage_scale)
    scores = []
    for group, row, group_rewards, group_advantage in zip(groups, measured, rewards, advantages, strict=True):
        for position, rollout in enumerate(group.rollouts):
            golden = golden_hits(rollout, group.question.golden_answers)
            scores.append(
                Score(
                    rollout_id=rollout.id,
                    group_id=group.id,
                    em=row[position]["em"],
                    f1=row[position]["f1"],
                    valid_format=rollout.valid_format,
                    golden=golden,
                    num_hits=sum(map(len, golden)),
                    num_golden_hits=sum(map(sum, golden)),
                    reward=group_rewards[position],
                    advantage=group_advantage[position],
                )
            )
    return scores


def _measure(rollout: Rollout, golden_answers: Sequence[str]) -> dict[str, float]:
    return {"em": exact_match(rollout.answer, golden_answers), "f1": f1_score(rollout.answer, golden_answers)}
