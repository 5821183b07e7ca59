"""Divergences over plain tensors: what must hold for any distributions, and at the edges of floating point."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdsearch.credit.divergence import divergence, entropy, truncate

seeds, scales, supports = st.integers(0, 10_000), st.floats(0.1, 40), st.integers(1, 29)
KINDS = ["jsd", "forward_kl", "reverse_kl", "mse"]


def pair(seed: int, scale: float, rows: int = 3, vocabulary: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, rows, vocabulary, generator=generator, dtype=torch.float64) * scale
    return torch.log_softmax(logits[0], -1), torch.log_softmax(logits[1], -1)


@given(seeds, scales, supports, st.sampled_from(["bucket", "renormalise"]))
def test_truncated_distributions_sum_to_one(seed: int, scale: float, k: int, tail: str) -> None:
    teacher, student = pair(seed, scale)
    for logprobs in (
        truncate(teacher, teacher.topk(k).indices, tail),
        truncate(student, teacher.topk(k).indices, tail),
    ):
        torch.testing.assert_close(logprobs.exp().sum(1), torch.ones(3, dtype=torch.float64), rtol=1e-9, atol=0)


@given(seeds, scales, st.sampled_from(KINDS))
def test_equal_distributions_have_no_divergence_and_no_gradient(seed: int, scale: float, kind: str) -> None:
    teacher, _ = pair(seed, scale)
    logits = teacher.clone().requires_grad_()
    value = divergence(teacher, torch.log_softmax(logits, -1), kind).sum()
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-12)
    assert float(logits.grad.abs().max()) < 1e-12


def test_direction_of_the_two_kls() -> None:
    teacher, student = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    reverse = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert float(divergence(teacher, student, "forward_kl")) == pytest.approx(forward, rel=1e-6)
    assert float(divergence(teacher, student, "reverse_kl")) == pytest.approx(reverse, rel=1e-6)
    assert float(entropy(student)) == pytest.approx(math.log(2), rel=1e-6)


def test_extreme_logits_stay_finite() -> None:
    teacher = torch.log_softmax(torch.tensor([[200.0, 0.0, -200.0]]), -1)
    logits = torch.tensor([[-200.0, 0.0, 200.0]], requires_grad=True)
    for kind in KINDS:
        ids = teacher.topk(2).indices
        student = truncate(torch.log_softmax(logits, -1), ids, "bucket")
        divergence(truncate(teacher, ids, "bucket"), student, kind).sum().backward()
        assert torch.isfinite(logits.grad).all()
