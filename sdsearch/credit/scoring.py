"""Exact match and F1, as SQuAD normalises and AutoRefine scores, and the score of each rollout."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from schemas.records.passage import Passage
from schemas.records.question import Question
from schemas.records.rollout import Group, Rollout
from schemas.records.score import RewardPart, Score
from schemas.settings.root import GrpoSettings, RewardSettings
from sdsearch.credit.advantage import group_advantages
from sdsearch.credit.rewards import RewardValue, StandardScores, open_reward, value_of
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


def cover_exact_match(answer: str | None, golden_answers: Sequence[str]) -> float:
    """Return 1.0 when the normalised answer contains a golden one, else 0.0; no answer scores 0.

    Characters are compared, not whole words, as FlashRAG's `acc` and Search-R1's `subem_check` do: long answers are
    favoured. A golden answer that normalises to nothing would be in nearly all answers and must be the whole answer.
    """
    return 0.0 if answer is None else float(any(_covers(answer, golden) for golden in golden_answers))


def _covers(answer: str, golden: str) -> bool:
    ours, theirs = _comparable(answer, golden)
    return ours == theirs if normalises_to_nothing(golden) else theirs in ours


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
    return any(answer and whole_words(answer) in words for answer in golden)


def whole_words(answer: str) -> str:
    """Return what of a normalised answer must stand in normalised words that begin and end with a blank."""
    return f"{_edge(answer[0])}{answer}{_edge(answer[-1])}"


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
    """Return every rollout's score and advantage, in order; what is earned enters the reward alone.

    Raises PluginError where `reward` names what cannot be used, or what gives no number for a rollout.
    """
    earn = open_reward(reward)
    measured = [[_measure(rollout, group.question) for rollout in group.rollouts] for group in groups]
    earned = [
        [
            value_of(earn, rollout, group.question.golden_answers, standard)
            for rollout, standard in zip(group.rollouts, row, strict=True)
        ]
        for group, row in zip(groups, measured, strict=True)
    ]
    advantages = group_advantages([[value.total for value in row] for row in earned], grpo.advantage_scale)
    return [
        _score(rollout, standard, value, advantage)
        for group, m, e, a in zip(groups, measured, earned, advantages, strict=True)
        for rollout, standard, value, advantage in zip(group.rollouts, m, e, a, strict=True)
    ]


def scores_by_group(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """Return the scores of each group, in the order of its rollouts."""
    of_group: dict[str, list[Score]] = {}
    for score in scores:
        of_group.setdefault(score.group_id, []).append(score)
    return of_group


def _measure(rollout: Rollout, question: Question) -> StandardScores:
    golden_answers = question.golden_answers
    return StandardScores(
        em=exact_match(rollout.answer, golden_answers),
        f1=f1_score(rollout.answer, golden_answers),
        cover_em=cover_exact_match(rollout.answer, golden_answers),
        valid_format=rollout.valid_format,
        golden=golden_hits(rollout, golden_answers),
        question=question,
    )


def _score(rollout: Rollout, standard: StandardScores, value: RewardValue, advantage: float) -> Score:
    return Score(
        rollout_id=rollout.id,
        group_id=rollout.group_id,
        em=standard.em,
        f1=standard.f1,
        valid_format=standard.valid_format,
        golden=standard.golden,
        num_hits=sum(map(len, standard.golden)),
        num_golden_hits=sum(map(sum, standard.golden)),
        reward=value.total,
        parts=tuple(RewardPart(part=name, value=number) for name, number in value.parts.items()),
        advantage=advantage,
    )
