"""What a person's own reward may give back, and what is said where it gives something else."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sdsearch.credit.rewards import RewardValue, StandardScores, value_of
from sdsearch.plugins import PluginError
from tests.support.builders import make_groups, make_tokenizer

GROUP = make_groups(make_tokenizer(), num_groups=1)[0]
ROLLOUT = GROUP.rollouts[0]
SCORES = StandardScores(em=0.0, f1=0.5, cover_em=1.0, valid_format=True, golden=(), question=GROUP.question)


def value(found: Any) -> RewardValue:
    return value_of(lambda rollout, golden, scores: found, ROLLOUT, ("Paris",), SCORES)


def test_parts_are_summed_and_a_total_is_taken_as_it_is() -> None:
    assert value({"f1": 0.5, "short": -0.1}) == RewardValue(0.4, {"f1": 0.5, "short": -0.1})
    assert value(RewardValue(3.0, {"f1": 0.5})) == RewardValue(3.0, {"f1": 0.5})


@pytest.mark.parametrize(
    "found", [{"a": math.nan}, {"a": math.inf}, {"a": "1"}, {}, 0.5, None, RewardValue(math.nan, {"a": 1.0})]
)
def test_what_is_no_reward_names_the_rollout(found: Any) -> None:
    with pytest.raises(PluginError, match=f"the reward of rollout '{ROLLOUT.id}' is .*finite numbers"):
        value(found)


def test_a_reward_that_raises_names_the_rollout_and_what_was_raised() -> None:
    def fails(*arguments: Any) -> Any:
        raise KeyError("boom")

    with pytest.raises(PluginError, match=rf"reward of rollout '{ROLLOUT.id}' failed with KeyError: 'boom'") as caught:
        value_of(fails, ROLLOUT, ("Paris",), SCORES)
    assert isinstance(caught.value.__cause__, KeyError)
