"""Which questions an iteration samples."""

from __future__ import annotations

import pytest

from schemas.errors import UserError
from sdsearch.data.curriculum import Curriculum
from sdsearch.seeds import derive_seed
from tests.support.builders import make_question

QUESTIONS = [make_question(number) for number in range(10)]


def keys(iteration: int, per_iteration: int, seed: int = 0) -> list[str]:
    return [question.key for question in Curriculum(QUESTIONS, per_iteration, seed).questions_of(iteration)]


def test_an_epoch_has_no_repeats_and_misses_nothing() -> None:
    epoch = [key for iteration in (1, 2) for key in keys(iteration, 5)]
    assert sorted(epoch) == sorted(question.key for question in QUESTIONS)
    second = [key for iteration in (3, 4) for key in keys(iteration, 5)]
    assert sorted(second) == sorted(epoch)
    assert second != epoch


def test_the_position_is_all_that_counts() -> None:
    assert keys(3, 4) == keys(3, 4)
    assert Curriculum(QUESTIONS[::-1], 4, 0).questions_of(3) == Curriculum(QUESTIONS, 4, 0).questions_of(3)
    assert keys(1, 4, seed=1) != keys(1, 4)


def test_an_iteration_across_two_epochs_has_no_question_twice() -> None:
    chosen = keys(3, 4)
    assert len(set(chosen)) == len(chosen) == 4
    first_two = set(keys(1, 4)) | set(keys(2, 4))
    assert len(set(chosen) - first_two) >= 2, "the epoch's rest comes first"


@pytest.mark.parametrize("per_iteration", [3, 4, 7, 9, 10])
def test_no_epoch_repeats_a_question_whatever_an_iteration_takes(per_iteration: int) -> None:
    curriculum = Curriculum(QUESTIONS, per_iteration, 0)
    iterations = [curriculum.questions_of(number) for number in range(1, 41)]
    assert iterations == [Curriculum(QUESTIONS, per_iteration, 0).questions_of(number) for number in range(1, 41)]
    assert all(len({question.key for question in chosen}) == per_iteration for chosen in iterations)
    drawn = [question.key for chosen in iterations for question in chosen]
    for start in range(0, len(drawn) - 9, 10):
        assert len(set(drawn[start : start + 10])) == 10


def test_an_epoch_is_put_in_order_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def derive(*identity: str | int) -> int:
        drawn.append(str(identity))
        return derive_seed(*identity)

    monkeypatch.setattr("sdsearch.data.curriculum.derive_seed", derive)
    curriculum = Curriculum(QUESTIONS, 2, 0)
    for iteration in range(1, 6):
        curriculum.questions_of(iteration)
    assert len(drawn) == len(QUESTIONS)


def test_too_few_questions_are_named() -> None:
    with pytest.raises(UserError, match="questions_per_iteration is 11, but the split has only 10"):
        keys(1, 11)


def test_seeds_tell_identities_apart() -> None:
    seeds = {
        derive_seed(1, "a"),
        derive_seed("1", "a"),
        derive_seed(1, "b"),
        derive_seed(1, "a", 0),
        derive_seed(11, "a"),
        derive_seed(1, 1, "a"),
    }
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_replacements_are_others_and_leave_the_epochs_alone() -> None:
    curriculum = Curriculum(QUESTIONS, 4, 0)
    for iteration in (1, 2, 3, 4):
        own = curriculum.questions_of(iteration)
        others = curriculum.replacements_of(iteration, 100)
        assert sorted(each.key for each in (*own, *others)) == sorted(each.key for each in QUESTIONS)
        assert curriculum.replacements_of(iteration, 3) == others[:3]
        assert Curriculum(QUESTIONS[::-1], 4, 0).replacements_of(iteration, 100) == others
        assert curriculum.questions_of(iteration) == Curriculum(QUESTIONS, 4, 0).questions_of(iteration) == own
    orders = [[each.key for each in curriculum.replacements_of(n, 100)] for n in (1, 6)]
    assert curriculum.questions_of(1) != curriculum.questions_of(6)
    assert [key for key in orders[0] if key in orders[1]] != [key for key in orders[1] if key in orders[0]]
    assert Curriculum(QUESTIONS, 4, 1).replacements_of(1, 6) != curriculum.replacements_of(1, 6)
