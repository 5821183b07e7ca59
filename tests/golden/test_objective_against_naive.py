"""The batched objective against the naive one: value and parameter gradients, every switch, ragged groups."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from schemas.config import Settings
from sdsearch.hindsight import build_blocks
from sdsearch.loss import accumulate_gradient, weigh
from sdsearch.policy import trainable_parameters
from sdsearch.scoring import score_groups
from sdsearch.teacher import compute_targets
from sdsearch.training_set import training_rollouts
from sdsearch.update import score_once
from tests.builders import make_groups, make_model, make_tokenizer
from tests.golden.naive import naive_loss

ALPHA = 0.7


def make_settings(**sections: dict) -> Settings:
    distillation = {"warmup_iterations": 0, "alpha": ALPHA, "top_k": 7, **sections.pop("distillation", {})}
    grpo = {"kl_coefficient": 0.3, **sections.pop("grpo", {})}
    return Settings(
        model={"path": "none"}, distillation=distillation, grpo=grpo, rollout={"temperature": 0.8}, **sections
    )


def both(settings: Settings, kind: str = "llama") -> tuple[float, dict, float, dict]:
    """Return (loss, gradients) of the real objective and of the naive one."""
    tokenizer = make_tokenizer()
    groups = make_groups(tokenizer)
    policy, reference = make_model(kind, seed=1).double(), make_model(kind, seed=2).double()
    teacher = copy.deepcopy(policy)
    scores = score_groups(groups, settings.reward, settings.grpo)
    by_group = {group.id: [score for score in scores if score.group_id == group.id] for group in groups}
    blocks = [
        block
        for group in groups
        for block in build_blocks(
            group,
            by_group[group.id],
            settings=settings.hindsight,
            seed=0,
            tokenizer=tokenizer,
            max_context_tokens=512,
        )
    ]
    tensors, pointers, _ = compute_targets(
        teacher,
        tokenizer,
        groups,
        blocks,
        hindsight=settings.hindsight,
        distillation=settings.distillation,
        temperature=settings.rollout.temperature,
        max_tokens=300,
        head_chunk=settings.update.head_chunk,
    )
    # Steps later the policy has moved away from the weights that sampled and taught.
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    rollouts = training_rollouts(groups, scores, pointers, tensors)
    scored = score_once(policy, reference, rollouts, settings)
    if settings.grpo.old_logprobs == "trainer":
        scored = score_once(teacher, reference, rollouts, settings)
    terms = accumulate_gradient(policy, weigh(scored, settings.grpo), settings, ALPHA)
    value = float(terms.policy_loss + settings.grpo.kl_coefficient * terms.kl + ALPHA * terms.sd_loss)
    ours = {name: parameter.grad.clone() for name, parameter in trainable_parameters(policy).items()}
    policy.zero_grad()
    loss = naive_loss(policy, reference, teacher, groups, scores, {b.group_id: b for b in blocks}, settings, ALPHA)
    loss.backward()
    theirs = {name: parameter.grad.clone() for name, parameter in trainable_parameters(policy).items()}
    return value, ours, loss.item(), theirs


def assert_same(settings: Settings, kind: str = "llama") -> None:
    value, ours, naive_value, theirs = both(settings, kind)
    assert value == pytest.approx(naive_value, rel=1e-6)
    scale = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert scale > 1e-3, "the comparison needs a gradient"
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_default_objective(kind: str) -> None:
    assert_same(make_settings(), kind)


@pytest.mark.parametrize(
    ("divergence", "support", "tail"),
    [
        *itertools.product(["jsd", "forward_kl", "reverse_kl"], ["teacher", "full"], ["bucket", "renormalise"]),
        ("mse", "teacher", "bucket"),
        ("mse", "full", "bucket"),
    ],
)
def test_divergences(divergence: str, support: str, tail: str) -> None:
    assert_same(make_settings(distillation={"divergence": divergence, "support": support, "tail": tail}))


@pytest.mark.parametrize(
    "grpo",
    [
        {"aggregation": "sequence_mean"},
        {"aggregation": "constant", "constant_tokens": 64},
        {"old_logprobs": "trainer"},
        {"advantage_scale": "batch"},
        {"advantage_scale": "none", "clip_low": 0.1, "clip_high": 0.3},
        {"importance_cap": 1.1},
        {"kl_coefficient": 0.0},
    ],
    ids=str,
)
def test_policy_terms(grpo: dict) -> None:
    assert_same(make_settings(grpo=grpo))


def test_all_sampled_positions() -> None:
    assert_same(make_settings(distillation={"positions": "completion"}))


@pytest.mark.parametrize(("max_tokens", "head_chunk"), [(1, 3), (150, 5), (400, 17), (100000, 100000)])
def test_microbatches_and_chunks_change_nothing(max_tokens: int, head_chunk: int) -> None:
    assert_same(make_settings(update={"max_tokens_per_microbatch": max_tokens, "head_chunk": head_chunk}))
