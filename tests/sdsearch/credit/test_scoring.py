"""EM, F1, reward and retrieval hits against SQuAD's rules."""

from __future__ import annotations

import collections
import re
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from schemas.records.passage import Passage
from schemas.settings.root import GrpoSettings, RewardSettings
from sdsearch.credit.rewards import RewardValue, StandardScores, open_reward, value_of
from sdsearch.credit.scoring import (
    contains_answer,
    cover_exact_match,
    exact_match,
    f1_score,
    normalise_answer,
    normalises_to_nothing,
    score_groups,
)
from tests.support.builders import make_groups, make_tokenizer


@pytest.mark.parametrize(
    ("answer", "golden", "em", "f1"),
    [
        ("The Andorra la Vella!", ["andorra la vella"], 1.0, 1.0),
        ("Andorra", ["Andorra la Vella"], 0.0, 0.5),
        ("city of Paris", ["Paris", "Lutetia"], 0.0, 0.5),
        ("+376", ["+376", "376"], 1.0, 1.0),
        ("yes", ["no"], 0.0, 0.0),
        ("yes it is", ["yes"], 0.0, 0.0),
        ("the", ["a"], 0.0, 0.0),
        ("A", ["A"], 1.0, 1.0),
        ("a.", ["A"], 1.0, 1.0),
        ("", ["A"], 0.0, 0.0),
        ("A", ["An"], 0.0, 0.0),
        ("The The", ["the the!"], 1.0, 1.0),
        ("The", ["The The"], 0.0, 2 / 3),
        ("the", ["The The", "the"], 1.0, 1.0),
        ("the Beatles", ["A", "Beatles"], 1.0, 1.0),
        ("?", ["?"], 1.0, 1.0),
        ("a ?", ["?"], 0.0, 2 / 3),
        ("!", ["?"], 0.0, 0.0),
        ("c", ["C++"], 1.0, 1.0),
        ("1000", ["1,000"], 1.0, 1.0),
        ("长江", ["长江"], 1.0, 1.0),
        ("长江。", ["长江"], 0.0, 0.0),
        (None, ["x"], 0.0, 0.0),
        ("b b c", ["b c c"], 0.0, 2 / 3),
    ],
)
def test_scores(answer: str | None, golden: list[str], em: float, f1: float) -> None:
    assert exact_match(answer, golden) == em
    assert f1_score(answer, golden) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "golden", "cover_em"),
    [
        ("The capital is Paris.", ["Lutetia", "paris"], 1.0),
        ("Paris", ["The Paris"], 1.0),
        ("Paris", ["City of Paris"], 0.0),
        ("1,000 people", ["1000"], 1.0),
        ("Comparison", ["Paris"], 1.0),  # Characters, as the public scripts have it.
        ("banana", ["A"], 0.0),
        ("a", ["A"], 1.0),
        ("", ["Paris"], 0.0),
        (None, ["Paris"], 0.0),
    ],
)
def test_cover_em_asks_whether_the_answer_contains_a_golden_one(
    answer: str | None, golden: list[str], cover_em: float
) -> None:
    assert cover_exact_match(answer, golden) == cover_em


def official(answer: str, golden: str) -> tuple[float, float]:
    """EM and F1 as HotpotQA's script has them: SQuAD's, and yes, no, noanswer compared whole."""

    def normalised(text: str) -> str:
        text = "".join(character for character in text.lower() if character not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    ours, theirs = normalised(answer), normalised(golden)
    em = float(ours == theirs)
    if not em and {ours, theirs} & {"yes", "no", "noanswer"}:
        return em, 0.0
    same = sum((collections.Counter(ours.split()) & collections.Counter(theirs.split())).values())
    if same == 0:
        return em, 0.0
    precision, recall = same / len(ours.split()), same / len(theirs.split())
    return em, 2 * precision * recall / (precision + recall)


WORDS = st.sampled_from(["the", "a", "An", "yes", "No", "Lima", "lima,", "of", "U.S.", "?", "1,000", "é", "—", "长江"])
ANSWERS = st.lists(WORDS, max_size=4).map(" ".join) | st.text(max_size=12)


@given(answer=ANSWERS, golden=ANSWERS)
def test_scores_are_the_official_ones_where_something_is_left_of_the_golden_answer(answer: str, golden: str) -> None:
    assume(not normalises_to_nothing(golden))
    em, f1 = official(answer, golden)
    assert (exact_match(answer, [golden]), f1_score(answer, [golden])) == (em, pytest.approx(f1))


@given(golden=ANSWERS.filter(str.strip))
def test_every_golden_answer_is_right_and_what_is_right_has_an_f1_of_one(golden: str) -> None:
    scores = exact_match(golden, [golden]), cover_exact_match(golden, [golden]), f1_score(golden, [golden])
    assert scores == (1.0, 1.0, 1.0)


@given(answer=ANSWERS, golden=ANSWERS.filter(str.strip))
def test_what_matches_exactly_is_covered(answer: str, golden: str) -> None:
    assert cover_exact_match(answer, [golden]) >= exact_match(answer, [golden])


def test_the_reward_is_the_metric_that_is_chosen() -> None:
    (group,) = make_groups(make_tokenizer(), num_groups=1)
    scores = StandardScores(em=0.0, f1=0.4, cover_em=1.0, valid_format=True, golden=(), question=group.question)
    for metric, earned in (("f1", 0.4), ("em", 0.0), ("cover_em", 1.0)):
        reward = open_reward(RewardSettings.model_validate({"metric": metric}))
        assert value_of(reward, group.rollouts[0], ("Paris",), scores) == RewardValue(earned, {metric: earned})


def test_normalisation() -> None:
    assert normalise_answer("  The  U.S.A. — an  area ") == "usa — area"


def test_hits_hold_whole_words() -> None:
    passage = Passage(id="1", title="Chad", text="The calling code is +235.")
    assert contains_answer(passage, ["235"])
    assert contains_answer(passage, ["chad"])
    assert not contains_answer(passage, ["23", "hat", "the", "?", "A"])
    assert contains_answer(Passage(id="1", title="长江", text="中国最长的河流是长江，全长6300公里。"), ["河流"])
    assert not contains_answer(Passage(id="1", title="长江", text="全长6300公里"), ["黄河", "630"])


def test_format_bonus_enters_the_reward_alone() -> None:
    groups = make_groups(make_tokenizer())
    plain = score_groups(groups, RewardSettings(), GrpoSettings())
    bonus = score_groups(groups, RewardSettings(format_bonus=0.25), GrpoSettings())
    assert [score.valid_format for score in plain[:5]] == [True, True, True, False, True]
    for before, after in zip(plain, bonus, strict=True):
        assert (before.em, before.f1) == (after.em, after.f1)
        assert after.reward == before.reward + 0.25 * after.valid_format
    assert [score.f1 for score in plain[:5]] == [1.0, 0.0, 0.5, 0.0, 1.0]
    assert [score.reward for score in score_groups(groups, RewardSettings(metric="em"), GrpoSettings())[:5]] == [
        1.0,
        0.0,
        0.0,
        0.0,
        1.0,
    ]
