"""The batched objective against the naive one: value and parameter gradients, one switch at a time, ragged groups."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from schemas.records.rollout import Group
from sdsearch.model.batching import microbatches
from sdsearch.model.policy import set_gradient_checkpointing, trainable_parameters
from sdsearch.training.loss import accumulate_gradient, weigh
from sdsearch.training.loss_settings import LossSettings
from tests.golden.cases import ALPHA, assert_close_gradients, assert_same_loss, make_case, make_settings
from tests.support.builders import make_groups, make_tokenizer

KINDS = ["jsd", "forward_kl", "reverse_kl", "mse"]


def two_groups() -> list[Group]:
    return make_groups(make_tokenizer(), num_groups=2)


@pytest.mark.parametrize(
    ("kind", "tuning", "checkpointing"),
    [
        *itertools.product(["llama", "qwen2"], ["full", "lora"], [False]),
        ("llama", "full", True),
        ("qwen2", "lora", True),
        ("qwen3", "full", True),
        ("qwen3", "lora", False),
    ],
)
def test_default_objective(kind: str, tuning: str, checkpointing: bool) -> None:
    case = make_case(make_settings(model={"path": "none", "tuning": tuning}), two_groups(), kind)
    set_gradient_checkpointing(case.policy, checkpointing)
    case.policy.train()
    assert_same_loss(case)
    terms, gradients = case.ours()
    assert 0.1 < float(terms.num_clipped) / sum(len(item.sampled_N) for item in case.scored) < 0.9
    assert min(float(terms.kl), float(terms.sd_loss), max(float(g.abs().max()) for g in gradients.values())) > 1e-2


@pytest.mark.parametrize(
    ("divergence", "support", "tail"),
    [
        *itertools.product(KINDS, ["teacher", "student", "full"], ["bucket"]),
        *itertools.product(["jsd", "forward_kl", "reverse_kl"], ["teacher", "student"], ["renormalise"]),
    ],
)
def test_divergences(divergence: str, support: str, tail: str) -> None:
    """The policy's loss and the KL are left out, so that the gradient compared is that of L_SD alone."""
    distillation = {"divergence": divergence, "support": support, "tail": tail}
    case = make_case(make_settings(distillation=distillation, grpo={"kl_coefficient": 0.0}))
    unrewarded = [score.model_copy(update={"advantage": 0.0}) for score in case.naive.scores]
    scored = [
        dataclasses.replace(item, rollout=dataclasses.replace(item.rollout, advantage=0.0)) for item in case.scored
    ]
    alone = dataclasses.replace(case, scored=scored, naive=dataclasses.replace(case.naive, scores=unrewarded))
    assert_same_loss(alone)
    assert float(alone.ours()[0].policy_loss) == 0.0


@pytest.mark.parametrize(
    "sections",
    [
        {"grpo": {"aggregation": "sequence_mean"}},
        {"grpo": {"aggregation": "constant", "constant_tokens": 64}},
        {"grpo": {"old_logprobs": "trainer"}},
        {"grpo": {"old_logprobs": "trainer", "importance_cap": 1.05}},
        {"grpo": {"advantage_scale": "none", "clip_low": 0.1, "clip_high": 0.3}},
        {"grpo": {"clip_low": 0.0, "clip_high": 4.0}},
        {"grpo": {"importance_cap": 1.1}},
        {"grpo": {"kl_coefficient": 0.0}},
        {"reward": {"metric": "em", "format_bonus": 0.2}},
        {"distillation": {"positions": "completion"}},
        {"distillation": {"top_k": len(make_tokenizer())}},
        {"hindsight": {"masking": "none"}},
        {"hindsight": {"masking": "current_documents"}},
        {"hindsight": {"members": "leave_one_out"}},
        {"hindsight": {"members": "focal_only"}},
        {"hindsight": {"members": "correct_only"}},
        {"hindsight": {"labels": "none"}},
        {"hindsight": {"labels": "shuffled"}},
        {"hindsight": {"labels": "random"}},
        {"hindsight": {"rho": 0.9, "label_metric": "em", "max_block_tokens": 60}},
    ],
    ids=str,
)
def test_switches(sections: dict[str, Any]) -> None:
    case = make_case(make_settings(**sections))
    assert_same_loss(case)
    assert float(case.ours()[0].sd_loss) > 0


def test_advantages_scaled_over_the_batch() -> None:
    assert_same_loss(make_case(make_settings(grpo={"advantage_scale": "batch"}), two_groups()))


def test_while_alpha_is_zero_only_grpo_is_left() -> None:
    case = make_case(make_settings(), alpha=0.0)
    assert_same_loss(case)
    assert float(case.ours()[0].sd_loss) == 0.0


@pytest.fixture(scope="module")
def whole_step() -> dict[str, tuple]:
    """A case of each aggregation with the terms and gradients of the step in one piece, checked by the naive one."""
    settings = {name: make_settings(grpo={"aggregation": name}) for name in ("token_mean", "sequence_mean")}
    cases = {name: make_case(of_name, two_groups()) for name, of_name in settings.items()}
    for case in cases.values():
        assert_same_loss(case)
    return {name: (case, *case.ours()) for name, case in cases.items()}


@pytest.mark.parametrize(
    ("budget", "sizes"),
    [(1, [1] * 10), (150, [3, 3, 4]), (200, [5, 5]), (600, [10])],
    ids=["one each", "groups split", "a group each", "both groups"],
)
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_microbatches_and_chunks_change_nothing(
    budget: int, sizes: list[int], aggregation: str, whole_step: Any
) -> None:
    """Gradients to 1e-6: transformers' RMSNorm works in fp32, through which a context's come summed or one by one."""
    case, terms, gradients = whole_step[aggregation]
    update = {"max_tokens_per_microbatch": budget, "head_chunk": 3 * sizes[0]}
    cut = case.settings.model_copy(update={"update": case.settings.update.model_copy(update=update)})
    batches = microbatches([item.rollout.sequence for item in case.scored], budget)
    assert [len(batch) for batch in batches] == sizes
    again, cut_gradients = case.ours(cut)
    for name, value in vars(terms).items():
        torch.testing.assert_close(getattr(again, name), value, rtol=1e-9, atol=1e-12, msg=name)
    assert_close_gradients(cut_gradients, gradients, rtol=1e-6)


def test_the_order_of_the_rollouts_changes_nothing(whole_step: Any) -> None:
    case, terms, gradients = whole_step["token_mean"]
    for order in ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [3, 7, 0, 9, 1, 4, 8, 2, 6, 5]):
        permuted = dataclasses.replace(case, scored=[case.scored[place] for place in order])
        again, other = permuted.ours()
        for name, value in vars(terms).items():
            torch.testing.assert_close(getattr(again, name), value, rtol=1e-9, atol=1e-12, msg=name)
        assert_close_gradients(other, gradients, rtol=1e-9)


@pytest.mark.parametrize("positions", ["query", "completion"])
def test_both_parts_of_the_gradient_add_up(positions: str) -> None:
    """Measured apart over several micro-batches, both gradients are those of the naive one's terms."""
    case = make_case(make_settings(distillation={"positions": positions}, update={"max_tokens_per_microbatch": 150}))
    parameters = trainable_parameters(case.policy)
    sd_gradient = [torch.zeros_like(parameter) for parameter in parameters.values()]
    case.policy.zero_grad()
    members = weigh(case.scored, case.settings.grpo)
    accumulate_gradient(case.policy, members, LossSettings.of(case.settings), ALPHA, sd_gradient)
    grpo = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    case.policy.zero_grad()
    (ALPHA * case.naive.loss(case.policy).sd_loss).backward()
    sd = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    assert_close_gradients(dict(zip(parameters, sd_gradient, strict=True)), sd)
    _, whole = case.theirs()
    assert_close_gradients({name: grpo[name] + sd[name] for name in grpo}, whole)
