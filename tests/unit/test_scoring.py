"""EM, F1, reward and retrieval hits against SQuAD's rules."""

from __future__ import annotations

import pytest

from schemas.config import GrpoSettings, RewardSettings
from schemas.passage import Passage
from sdsearch.scoring import contains_answer, exact_match, f1_score, normalise_answer, score_groups
from tests.builders import make_groups, make_tokenizer


@pytest.mark.parametrize(
    ("answer", "golden", "em", "f1"),
    [
        ("The Andorra la Vella!", ["andorra la vella"], 1.0, 1.0),
        ("Andorra", ["Andorra la Vella"], 0.0, 0.5),
        ("city of Paris", ["Paris", "Lutetia"], 0.0, 0.5),
        ("+376", ["+376", "376"], 1.0, 1.0),
        ("yes", ["no"], 0.0, 0.0),
        ("yes it is", ["yes"], 0.0, 0.0),
        ("the", ["a"], 1.0, 0.0),
        (None, ["x"], 0.0, 0.0),
        ("b b c", ["b c c"], 0.0, 2 / 3),
    ],
)
def test_scores(answer: str | None, golden: list[str], em: float, f1: float) -> None:
    assert exact_match(answer, golden) == em
    assert f1_score(answer, golden) == pytest.approx(f1)


def test_normalisation() -> None:
    assert normalise_answer("  The  U.S.A. — an  area ") == "usa — area"


def test_hits_hold_whole_words() -> None:
    passage = Passage(id="1", title="Chad", text="The calling code is +235.")
    assert contains_answer(passage, ["235"])
    assert contains_answer(passage, ["chad"])
    assert not contains_answer(passage, ["23", "hat", "the"])


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
