"""A teacher that sees what the student sees teaches nothing: no loss, no gradient."""

from __future__ import annotations

import pytest
import torch

from schemas.records.rollout import Group
from sdsearch.training.logprobs import score_once
from sdsearch.training.loss import accumulate_gradient, weigh
from sdsearch.training.loss_settings import LossSettings
from sdsearch.training.training_set import training_rollouts
from tests.golden.cases import ALPHA, Case, gradients_of, make_case, make_settings, teach


def student_with_the_block(case: Case) -> list[Group]:
    """The groups as if the block had stood in the student's prompt, too: both contexts are the same tokens."""
    groups = []
    for group, block in zip(case.naive.groups, case.naive.blocks, strict=True):
        offset, prompt = group.block_offset, group.prompt_token_ids
        hinted = (*prompt[:offset], *block.token_ids, *prompt[offset:])
        groups.append(group.model_copy(update={"prompt_token_ids": hinted}))
    return groups


@pytest.mark.parametrize(
    ("divergence", "support"),
    [("jsd", "teacher"), ("jsd", "full"), ("forward_kl", "teacher"), ("reverse_kl", "teacher"), ("mse", "teacher")],
)
def test_equal_contexts_give_no_loss_and_no_gradient(divergence: str, support: str) -> None:
    settings = make_settings(distillation={"divergence": divergence, "support": support})
    case = make_case(settings, moved=0.0)
    unlike = sd_part(case, case.rollouts)
    tensors, pointers, _ = teach(case.naive.teacher, case.naive.groups, case.naive.blocks, settings)
    same = sd_part(case, training_rollouts(student_with_the_block(case), case.naive.scores, pointers, tensors))
    assert unlike[0] > 1e-2
    assert unlike[1] > 1e-3
    assert abs(same[0]) < 1e-12
    assert same[1] < 1e-12


def sd_part(case: Case, rollouts: list) -> tuple[float, float]:
    """L_SD and the largest entry of its gradient."""
    sd_gradient = [torch.zeros_like(value) for value in gradients_of(case.policy).values()]
    settings = LossSettings.of(case.settings)
    members = weigh(score_once(case.policy, case.frozen, rollouts, settings), settings.grpo)
    terms = accumulate_gradient(case.policy, members, settings, ALPHA, sd_gradient)
    return float(terms.sd_loss), max(float(gradient.abs().max()) for gradient in sd_gradient)
