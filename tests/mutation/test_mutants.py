"""The list of mutations fits the sources; the check itself takes minutes and is `make mutants`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutation.mutants import TESTS, Mutant, check, mutants

ROOT = Path(__file__).parents[2]


def test_each_mutation_fits_the_sources() -> None:
    assert check(ROOT) == [], "a line that a mutation names has changed: change tests/mutation/mutants.toml with it"


def test_the_named_tests_exist() -> None:
    missing = {test for tests in TESTS.values() for test in tests if not (ROOT / test).is_file()}
    assert not missing
    assert len(mutants()) > 25


def test_a_text_that_is_not_there_once_is_refused() -> None:
    for old, count in [("absent", 0), ("a", 3)]:
        with pytest.raises(ValueError, match=f"stands {count} times"):
            Mutant("x", "sdsearch/training/loss.py", old, "b").apply("a a a")
