"""The two parts of a step's gradient as they are weighed and clipped, against autograd on the naive objective."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schemas.settings.root import Settings
from sdsearch.model.policy import trainable_parameters
from sdsearch.training.loss import weigh
from sdsearch.training.loss_settings import LossSettings
from sdsearch.training.step_gradient import StepGradient, compute_step_gradient
from sdsearch.training.strength import begin_iteration
from tests.golden.cases import Case, assert_close_gradients, gradients_of, make_case, make_settings

ALPHA = 200.0
"""With it the SD part is several times as large as GRPO's."""
Gradient = dict[str, Tensor]


def settings_of(**distillation: Any) -> Settings:
    return make_settings(distillation={"alpha": ALPHA, **distillation})


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(settings_of())


def naive_parts(case: Case, model: nn.Module) -> tuple[Gradient, Gradient]:
    """The gradients of L_GRPO with its KL and of L_SD, each alone."""
    loss = case.naive.loss(model)
    parameters = trainable_parameters(model)

    def gradient(term: Tensor) -> Gradient:
        found = torch.autograd.grad(term, list(parameters.values()), retain_graph=True, allow_unused=True)
        return {
            name: torch.zeros_like(p) if part is None else part
            for (name, p), part in zip(parameters.items(), found, strict=True)
        }

    return gradient(loss.policy_loss + case.settings.grpo.kl_coefficient * loss.kl), gradient(loss.sd_loss)


def norm(gradient: Gradient) -> float:
    return float(torch.cat([value.flatten() for value in gradient.values()]).norm())


def added(one: Gradient, other: Gradient, factor: float = 1.0, own: float = 1.0) -> Gradient:
    return {name: own * one[name] + factor * other[name] for name in one}


def ours(case: Case, settings: Settings, max_norm: float = 1e9, **chosen: Any) -> StepGradient:
    members = chosen.pop("members", None) or weigh(case.scored, settings.grpo)
    return compute_step_gradient(
        case.policy,
        members,
        LossSettings.of(settings),
        begin_iteration(settings, 1),
        max_norm,
        measure_parts=chosen.pop("measure_parts", False),
    )


@pytest.mark.parametrize("share", [0.15, 4.0])
def test_the_share_holds_in_the_step_that_is_measured(case: Case, share: float) -> None:
    grpo, sd = naive_parts(case, case.policy)
    found = ours(case, settings_of(strength={"kind": "gradient_share", "share": share}))
    alpha = share * norm(grpo) / norm(sd)
    assert found.alpha == pytest.approx(alpha, rel=1e-5)
    assert found.norm_sd == pytest.approx(share * norm(grpo), rel=1e-5)
    assert found.norm_grpo == pytest.approx(norm(grpo), rel=1e-5)
    assert_close_gradients(gradients_of(case.policy), added(grpo, sd, alpha))
    assert found.norm == pytest.approx(norm(added(grpo, sd, alpha)), rel=1e-5)


def test_parts_that_are_measured_are_the_same_step(case: Case) -> None:
    plain = ours(case, case.settings)
    before = gradients_of(case.policy)
    found = ours(case, case.settings, measure_parts=True)
    assert (plain.norm_grpo, plain.norm_sd, plain.sd_clip_factor) == (None, None, None)
    assert_close_gradients(gradients_of(case.policy), before)
    grpo, sd = naive_parts(case, case.policy)
    assert (found.norm_grpo, found.norm_sd) == pytest.approx((norm(grpo), ALPHA * norm(sd)), rel=1e-5)


def test_joint_clipping_shrinks_grpo_and_own_does_not(case: Case) -> None:
    grpo, sd = naive_parts(case, case.policy)
    bound = 0.5 * norm(grpo)
    assert ALPHA * norm(sd) > norm(grpo)
    joint = added(grpo, sd, ALPHA)
    ours(case, case.settings, bound)
    assert_close_gradients(gradients_of(case.policy), added(grpo, sd, ALPHA * bound / norm(joint), bound / norm(joint)))
    found = ours(case, settings_of(clip="own", strength={"kind": "alpha", "max_share": 0.3}), bound)
    assert found.sd_clip_factor == pytest.approx(0.3 * bound / (ALPHA * norm(sd)), rel=1e-5)
    assert_close_gradients(gradients_of(case.policy), added(grpo, sd, 0.3 * bound / norm(sd), 0.5))
    assert found.norm == pytest.approx(norm(joint), rel=1e-5), "before clipping"


def test_own_takes_the_share_of_what_grpo_has_where_that_is_below_the_bound(case: Case) -> None:
    grpo, sd = naive_parts(case, case.policy)
    ours(case, settings_of(clip="own", strength={"kind": "alpha", "max_share": 0.3}), 100 * norm(grpo))
    assert_close_gradients(gradients_of(case.policy), added(grpo, sd, 0.3 * norm(grpo) / norm(sd)))
    small = settings_of(alpha=1e-6, clip="own")
    assert ours(case, small, 100 * norm(grpo)).sd_clip_factor == 1.0, "nothing is scaled up"
    assert_close_gradients(gradients_of(case.policy), added(grpo, sd, 1e-6))


def test_own_holds_a_measured_share_whatever_alpha_the_past_gives(case: Case) -> None:
    grpo, sd = naive_parts(case, case.policy)
    wanted = {"kind": "gradient_share", "share": 0.5, "min_alpha": 1e6, "max_alpha": 1e6}
    ours(case, settings_of(clip="own", strength=wanted), 1e9)
    assert_close_gradients(gradients_of(case.policy), added(grpo, sd, 0.5 * norm(grpo) / norm(sd)))


@pytest.fixture(scope="module")
def unmixed(case: Case) -> list[Any]:
    """The same step where every advantage is 0, and GRPO has its KL alone."""
    return [
        replace(member, scored=replace(member.scored, rollout=replace(member.scored.rollout, advantage=0.0)))
        for member in weigh(case.scored, case.settings.grpo)
    ]


def test_without_a_mixed_group_alpha_stays_and_the_bound_is_a_share_of_the_largest_step(
    case: Case, unmixed: list[Any]
) -> None:
    _, sd = naive_parts(case, case.policy)
    wanted = {"kind": "gradient_share", "share": 0.4}
    found = ours(case, settings_of(strength=wanted), members=unmixed)
    assert found.alpha == ALPHA, "not measured: the first weight is kept"
    assert found.strength.state.norm_grpo is None
    found = ours(case, settings_of(strength=wanted, clip="own"), 0.01, members=unmixed)
    assert found.norm_sd is not None
    assert found.norm_sd == pytest.approx(ALPHA * norm(sd), rel=1e-5)
    assert found.sd_clip_factor == pytest.approx(0.4 * 0.01 / found.norm_sd, rel=1e-6)
