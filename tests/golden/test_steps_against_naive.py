"""Several optimiser steps and epochs: each step's loss and gradient is the naive one's at that step's weights."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn

from schemas.records.rollout import Group, Rollout
from sdsearch.model.policy import trainable_parameters
from sdsearch.seeds import derive_seed
from sdsearch.training.optimiser import make_optimiser
from sdsearch.training.update import update_policy
from tests.golden.cases import Case, assert_close_gradients, gradients_of, make_case, make_settings
from tests.support.builders import make_groups, make_tokenizer

ITERATION = 3


def shuffled(case: Case, epoch: int) -> list[tuple[Group, Rollout]]:
    """An epoch's rollouts: the groups in the order that the seed gives, siblings together."""
    groups = list(case.naive.groups)
    random.Random(derive_seed(case.settings.seed, "order", ITERATION, epoch)).shuffle(groups)
    return [(group, rollout) for group in groups for rollout in group.rollouts]


def trained_copy(model: nn.Module) -> nn.Module:
    """The weights as they are now, without what hangs on them."""
    twin = copy.deepcopy(model)
    twin.zero_grad()
    return twin


@pytest.mark.parametrize(
    ("tuning", "old_logprobs", "members"),
    [("full", "sampler", "group"), ("full", "trainer", "leave_one_out"), ("lora", "trainer", "group")],
)
def test_every_step_is_the_naive_step(tuning: str, old_logprobs: str, members: str) -> None:
    settings = make_settings(
        model={"tuning": tuning},
        grpo={"old_logprobs": old_logprobs},
        hindsight={"members": members},
        # Nothing is clipped, so the gradient left on the parameters is the loss's own.
        update={
            "rollouts_per_step": 4,
            "epochs": 2,
            "learning_rate": 0.003,
            "max_grad_norm": 1e9,
            "gradient_parts_every": 1 if members == "leave_one_out" else 0,
        },
    )
    case = make_case(settings, make_groups(make_tokenizer(), num_groups=2), moved=0.0)
    optimiser = make_optimiser(case.policy, settings.update)
    before = trained_copy(case.policy)
    first = trained_copy(case.policy)
    reports = update_policy(
        case.policy, case.frozen, optimiser, case.rollouts, settings, iteration=ITERATION, steps_done=6
    )
    for number, report in enumerate(reports):
        epoch, step = divmod(number, 3)
        naive = case.naive.loss(before, shuffled(case, epoch)[4 * step : 4 * step + 4])
        naive.total.backward()
        assert (report.step, report.num_rollouts) == (7 + number, 2 if step == 2 else 4)
        assert report.loss == pytest.approx(float(naive.total.detach()), rel=1e-6)
        assert report.policy_loss == pytest.approx(float(naive.policy_loss.detach()), rel=1e-6, abs=1e-9)
        assert report.kl == pytest.approx(float(naive.kl.detach()), rel=1e-6)
        assert report.sd_loss == pytest.approx(float(naive.sd_loss.detach()), rel=1e-6)
        assert_close_gradients(gradients_of(case.policy), gradients_of(before))
        before = trained_copy(case.policy)
    assert number == 5
    distances = [
        float((now - then).detach().abs().max())
        for now, then in zip(
            trainable_parameters(case.policy).values(), trainable_parameters(first).values(), strict=True
        )
    ]
    assert torch.tensor(distances).min() > 0, "every step is taken at other weights"
