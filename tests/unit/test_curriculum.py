"""Which questions an iteration samples."""

from __future__ import annotations

import pytest

from schemas.errors import UserError
from sdsearch.curriculum import questions_of
from sdsearch.seeds import derive_seed
from tests.builders import make_question

QUESTIONS = [make_question(number) for number in range(10)]


def keys(iteration: int, per_iteration: int, seed: int = 0) -> list[str]:
    return [question.key for question in questions_of(iteration, QUESTIONS, per_iteration, seed)]


def test_an_epoch_has_no_repeats_and_misses_nothing() -> None:
    epoch = [key for iteration in (1, 2) for key in keys(iteration, 5)]
    assert sorted(epoch) == sorted(question.key for question in QUESTIONS)
    second = [key for iteration in (3, 4) for key in keys(iteration, 5)]
    assert sorted(second) == sorted(epoch)
    assert second != epoch


def test_the_position_is_all_that_counts() -> None:
    assert keys(3, 4) == keys(3, 4)
    assert questions_of(3, QUESTIONS[::-1], 4, 0) == questions_of(3, QUESTIONS, 4, 0)
    assert keys(1, 4, seed=1) != keys(1, 4)


def test_an_iteration_across_two_epochs_has_no_question_twice() -> None:
    chosen = keys(3, 4)
    assert len(set(chosen)) == len(chosen) == 4
    first_two = set(keys(1, 4)) | set(keys(2, 4))
    assert len(set(chosen) - first_two) >= 2, "the epoch's rest comes first"


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
