"""The first step of an update is neutral: the policy that is updated is the one that sampled, dropout or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from schemas.settings.root import Settings
from sdsearch.credit.scoring import score_groups
from sdsearch.credit.teacher import TargetTensors
from sdsearch.model.dropout import update_mode, without_randomness
from sdsearch.model.policy import backbone, set_gradient_checkpointing
from sdsearch.protocol.prompting import render_frame
from sdsearch.sampling.rollouts import RolloutLimits, RolloutLoop
from sdsearch.sampling.transformers_sampler import TransformersSampler
from sdsearch.training.optimiser import make_optimiser
from sdsearch.training.training_set import training_rollouts
from sdsearch.training.update import update_policy
from tests.golden.cases import make_settings
from tests.sdsearch.model.test_families import NAMED
from tests.support.builders import make_question, make_tokenizer
from tests.support.fakes import FixedRetriever
from tests.support.families import small_model

TOKENIZER = make_tokenizer()
NOTHING_DISTILLED = TargetTensors(torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1))
# What families call their dropout; each takes the names that its configuration has.
DROPOUT = dict.fromkeys(
    ("attention_dropout", "hidden_dropout", "resid_pdrop", "attn_pdrop", "embd_pdrop", "router_jitter_noise"), 0.2
)


def with_dropout(family: str) -> nn.Module:
    known = vars(small_model(family).config)
    return small_model(family, **{name: value for name, value in DROPOUT.items() if name in known})


def first_step(model: nn.Module, **update: Any) -> Any:
    """Roll out with the model and take the first step, with a reference that is the model itself; return its report."""
    settings: Settings = make_settings(
        update={"rollouts_per_step": 2, "gradient_parts_every": 0, **update},
        grpo={"old_logprobs": "sampler"},
        rollout={"temperature": 1.0},
        distillation={"enabled": False},
    )
    limits = RolloutLimits(1, 8, 200, 30, 512, 1)
    loop = RolloutLoop(
        TOKENIZER, TransformersSampler(model, TOKENIZER), FixedRetriever(), limits, render_frame(TOKENIZER, "compact")
    )
    asked = {"run_seed": 3, "iteration": 1, "policy_version": 0, "group_size": 2, "temperature": 1.0}
    groups = loop.roll_out([make_question()], **asked)
    scores = score_groups(groups, settings.reward, settings.grpo)
    rollouts = training_rollouts(groups, scores, [], NOTHING_DISTILLED)
    rollouts = [replace(rollout, advantage=1.0 - 2.0 * number) for number, rollout in enumerate(rollouts)]
    optimiser = make_optimiser(model, settings.update)
    return next(update_policy(model, model, optimiser, rollouts, settings, iteration=1, steps_done=0))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", [*NAMED, "phimoe", "opt"])
def test_the_first_step_is_neutral(family: str, checkpointing: bool) -> None:
    model = with_dropout(family)
    report = first_step(model, gradient_checkpointing=checkpointing)
    assert report.ratio_max == pytest.approx(1.0, abs=1e-4)
    assert report.sampler_kl == pytest.approx(0.0, abs=1e-4)
    assert report.sampler_max_difference == pytest.approx(0.0, abs=1e-4)
    assert report.kl == pytest.approx(0.0, abs=1e-4), "the reference has no dropout either"
    assert report.grad_norm > 0
    assert not model.training, "as it was before"


def test_a_setting_turns_the_model_s_own_dropout_on() -> None:
    report = first_step(with_dropout("gpt2"), dropout=True)
    assert report.sampler_kl > 0.01
    assert report.ratio_max > 1.05


def test_the_mode_of_an_update_leaves_everything_as_it_was() -> None:
    model = with_dropout("opt")
    set_gradient_checkpointing(model, True)
    layer = backbone(model).layers[0]
    before = [(part, part.training) for part in model.modules()], layer.dropout, dict(vars(model.config))
    assert layer.dropout > 0
    with without_randomness(model):
        assert layer.training, "only so is it computed again in the backward pass"
        assert layer.dropout == 0
        assert not layer.self_attn.training
    with update_mode(model, dropout=True):
        assert layer.self_attn.training
        assert layer.dropout > 0
    assert before == ([(part, part.training) for part in model.modules()], layer.dropout, dict(vars(model.config)))
