"""Groups and the replicas that generate their turns."""

from __future__ import annotations

from collections import Counter

from sdsearch.sampling.homes import Homes, group_of


def test_siblings_are_of_one_group() -> None:
    assert group_of("00001/q7/0") == group_of("00001/q7/4") == "00001/q7"


def test_groups_are_spread_and_stay_where_they_are() -> None:
    homes: Homes[int] = Homes()
    first = {f"q{i}": homes.of(f"q{i}", range(4)) for i in range(12)}
    assert Counter(first.values()) == dict.fromkeys(range(4), 3)
    assert {group: homes.of(group, range(4)) for group in reversed(first)} == first


def test_groups_of_a_replica_that_is_gone_move_and_the_others_do_not() -> None:
    homes: Homes[str] = Homes()
    first = {f"q{i}": homes.of(f"q{i}", ("a", "b", "c")) for i in range(6)}
    second = {group: homes.of(group, ("a", "c")) for group in first}
    assert all(second[group] == home for group, home in first.items() if home != "b")
    assert set(second.values()) == {"a", "c"}


def test_after_a_change_of_weights_they_are_spread_anew() -> None:
    homes: Homes[int] = Homes()
    homes.of("q0", range(2))
    homes.of("q1", range(2))
    homes.forget()
    assert homes.of("q1", range(2)) == 0
