"""Each gate by hand, and what is refused of one's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from schemas.settings.root import DistillationSettings
from sdsearch.credit.gates import GatedTokens, open_gate, try_gate
from sdsearch.credit.turn_advantage import leaned_advantage, turn_leanings
from sdsearch.plugins import PluginError

RATIOS, DIVERGENCES, TURNS = [0.4, -0.1, 0.0, 2.0], [0.1, 0.3, 0.2, 0.6], [0, 0, 2, 3]


def weights(
    gate: str, is_correct: bool = True, divergences: list[float] = DIVERGENCES, **options: float
) -> list[float]:
    settings = DistillationSettings(gate=gate, gate_options=options)
    tokens = GatedTokens(
        torch.tensor(RATIOS).double(), torch.tensor(divergences).double(), torch.tensor(TURNS), is_correct
    )
    return open_gate(settings)(tokens).tolist()


def test_each_gate() -> None:
    assert weights("none") == [1.0] * 4
    assert weights("sigmoid", sharpness=2.0) == pytest.approx([1 / (1 + math.exp(-2.0 * r)) for r in RATIOS])
    assert weights("influence") == pytest.approx([0.1 / 0.4, 0.3 / 0.6, 0.2 / 0.5, 0.6 / 0.9])
    assert weights("attenuation") == pytest.approx([1.0, 1.0, 1.0, 0.2 / 0.6])
    assert weights("outcome", is_correct=True) == [1.0, 0.0, 0.0, 1.0]
    assert weights("outcome", is_correct=False) == [0.0, 1.0, 0.0, 0.0]


def test_where_the_block_changes_nothing() -> None:
    assert weights("influence", divergences=[0.0] * 4) == [0.0] * 4
    assert weights("influence", divergences=[-1e-9, 0.2, 0.0, 0.2])[0] == 0.0, "rounding is no influence"
    assert weights("attenuation", divergences=[0.0] * 4) == [1.0] * 4
    assert weights("attenuation", divergences=[0.0, 0.0, 0.1, 0.0]) == [1.0, 1.0, 0.0, 1.0]


def flat(tokens: GatedTokens) -> Tensor:
    return torch.ones(1)


def double(tokens: GatedTokens) -> Tensor:
    return 2 * torch.ones_like(tokens.log_ratio_Q)


def nothing(tokens: GatedTokens) -> Tensor:
    return torch.full_like(tokens.log_ratio_Q, math.nan)


@pytest.mark.parametrize(
    ("name", "told"),
    [("flat", r"returned \(1,\) for 3 tokens"), ("double", "weights from 0 to 1"), ("nothing", "weights from 0 to 1")],
)
def test_a_gate_of_ones_own_that_gives_no_weights_is_refused(name: str, told: str) -> None:
    with pytest.raises(PluginError, match=told):
        try_gate(DistillationSettings(gate=f"{__name__}:{name}"))


def test_the_shipped_ones_pass_the_trial() -> None:
    for name in ("none", "sigmoid", "influence", "attenuation", "outcome"):
        try_gate(DistillationSettings(gate=name))


def test_what_the_teacher_says_of_a_turn_is_bounded_and_the_mean_of_its_tokens() -> None:
    found = turn_leanings([1.0, 3.0, -50.0], [1.0, 0.5, 1.0], [0, 0, 2], 4)
    assert found == pytest.approx((math.tanh((1.0 + 1.5) / 2), 0.0, -1.0, 0.0))


def test_an_advantage_keeps_its_sign_and_its_bounds() -> None:
    advantage = torch.tensor([2.0, 2.0, -2.0, -2.0, 0.0])
    leaning = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    assert leaned_advantage(advantage, leaning, 0.25).tolist() == [2.5, 1.5, -1.5, -2.5, 0.0]
    assert leaned_advantage(advantage, leaning, 7.0).tolist() == [4.0, 0.0, 0.0, -4.0, 0.0], "a reach of 1 at most"
