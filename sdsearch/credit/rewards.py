"""The reward of a rollout: the port that a plugin fills, and the one that is shipped."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Literal, NamedTuple

from pydantic import Field

from schemas.base import Section
from schemas.records.question import Question
from schemas.records.rollout import Rollout
from schemas.settings.root import RewardSettings
from sdsearch.plugins import PluginError, open_plugin


class StandardScores(NamedTuple):
    """What is measured of every rollout, whatever its reward is, and the question that it was about."""

    em: float
    f1: float
    cover_em: float
    valid_format: bool
    golden: tuple[tuple[bool, ...], ...]  # For each search and each of its passages: whether it contains an answer.
    question: Question


class RewardValue(NamedTuple):
    """A reward that is not the sum of its parts."""

    total: float
    parts: Mapping[str, float]


class Reward(Section):
    """What a rollout earns. A plugin derives from this class; its fields are its settings, `reward.options`.

    A plain function of the same arguments serves too. Labels of the hindsight block never read a reward.
    """

    @abstractmethod
    def __call__(
        self, rollout: Rollout, golden_answers: Sequence[str], scores: StandardScores
    ) -> Mapping[str, float] | RewardValue:
        """Return the reward's named parts, whose sum it is, or a `RewardValue` of another total."""


class AnswerReward(Reward):
    """The answer's F1, exact match or cover exact match, and a bonus for a valid format."""

    metric: Literal["f1", "em", "cover_em"] = Field(default="f1", description="Answer metric that is the reward.")
    format_bonus: float = Field(default=0.0, ge=0, description="Added to the reward when the format is valid.")

    def __call__(
        self, rollout: Rollout, golden_answers: Sequence[str], scores: StandardScores
    ) -> Mapping[str, float] | RewardValue:
        """Return the metric, and the bonus where one is set."""
        metric = {"f1": scores.f1, "em": scores.em, "cover_em": scores.cover_em}[self.metric]
        if not self.format_bonus:
            return {self.metric: metric}
        return {self.metric: metric, "format": self.format_bonus * scores.valid_format}


RewardFunction = Callable[[Rollout, Sequence[str], StandardScores], Mapping[str, float] | RewardValue]


def open_reward(settings: RewardSettings) -> RewardFunction:
    """Return the reward that the settings name; PluginError where it cannot be used."""
    reward: RewardFunction = open_plugin("reward", settings.name, settings.given)
    return reward


def value_of(reward: RewardFunction, rollout: Rollout, golden_answers: Sequence[str], s: StandardScores) -> RewardValue:
    """Return what a rollout earns.

    PluginError, which names the rollout, where the reward raises, and for what is no reward: no parts, or a number that
    is not finite.
    """
    try:
        found = reward(rollout, golden_answers, s)
    except Exception as error:  # Whatever a person's own code raises.
        raise PluginError(
            f"reward.name: the reward of rollout '{rollout.id}' failed with {type(error).__name__}: {error}; correct "
            "it, or choose another"
        ) from error
    parts = found.parts if isinstance(found, RewardValue) else found
    if not isinstance(parts, Mapping) or not parts or not all(map(_is_number, parts.values())):
        raise _no_reward(rollout, found)
    total = found.total if isinstance(found, RewardValue) else math.fsum(parts.values())
    if not _is_number(total):
        raise _no_reward(rollout, found)
    return RewardValue(float(total), {str(name): float(number) for name, number in parts.items()})


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _no_reward(rollout: Rollout, got: object) -> PluginError:
    return PluginError(
        f"reward.name: the reward of rollout '{rollout.id}' is {str(got)[:200]}; expected its parts by name, "
        "finite numbers, such as {'f1': 0.5, 'searches': -0.1}, or a RewardValue(total, parts)"
    )
