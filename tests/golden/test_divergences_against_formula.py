"""The divergences on plain tensors against the formulas: float64, the whole vocabulary, one position at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdsearch.credit.divergence import divergence, truncate
from tests.golden.naive import divergence_from_formula, most_likely

KINDS = ["jsd", "forward_kl", "reverse_kl", "mse"]
TAILS = ["bucket", "renormalise"]
VOCABULARY = 23
seeds, scales, supports = st.integers(0, 10**6), st.floats(0.1, 8), st.integers(1, VOCABULARY)


def logits_of(seed: int, scale: float, rows: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, rows, VOCABULARY, generator=generator, dtype=torch.float64) * scale
    return teacher, student


def support_of(teacher: Tensor, student: Tensor, support: str, k: int) -> list[list[int]]:
    chosen = {"teacher": teacher, "student": student, "full": teacher}[support]
    return [most_likely(row, VOCABULARY if support == "full" else k) for row in chosen]


def ours(teacher: Tensor, student: Tensor, ids: list[list[int]], kind: str, tail: str) -> Tensor:
    """The divergences (Q,) of two tensors of logits as the project computes them."""
    ids_QK = torch.tensor(ids)
    teacher_QC = truncate(torch.log_softmax(teacher, -1), ids_QK, tail)
    return divergence(teacher_QC, truncate(torch.log_softmax(student, -1), ids_QK, tail), kind)


def formula(teacher: Tensor, student: Tensor, ids: list[list[int]], kind: str, tail: str) -> Tensor:
    """The same straight from the formulas."""
    p, q = torch.softmax(teacher, -1), torch.softmax(student, -1)
    return torch.stack([divergence_from_formula(*row, kind, tail) for row in zip(p, q, ids, strict=True)])


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("support", ["teacher", "student", "full"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(seeds, scales, supports)
def test_value_and_gradient(kind: str, support: str, tail: str, seed: int, scale: float, k: int) -> None:
    teacher, student = logits_of(seed, scale)
    ids = support_of(teacher, student, support, k)
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    results = []
    for function in (ours, formula):
        logits = student.clone().requires_grad_()
        values = function(teacher, logits, ids, kind, tail)
        (values * weights).sum().backward()
        results.append((values.detach(), logits.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_support_is_the_reference_itself(kind: str) -> None:
    teacher, student = logits_of(3, 2.0)
    whole = formula(teacher, student, [None] * 3, kind, "bucket")
    for tail in TAILS:
        ids = [list(range(VOCABULARY))] * 3
        torch.testing.assert_close(ours(teacher, student, ids, kind, tail), whole, rtol=1e-12, atol=1e-15)


@given(seeds, scales, supports, st.sampled_from(["teacher", "student"]))
def test_a_tail_bucket_bounds_the_jsd(seed: int, scale: float, k: int, support: str) -> None:
    teacher, student = logits_of(seed, scale)
    truncated = ours(teacher, student, support_of(teacher, student, support, k), "jsd", "bucket")
    whole = formula(teacher, student, [None] * 3, "jsd", "bucket")
    assert (truncated >= 0).all()
    assert (truncated <= whole * (1 + 1e-12)).all()
    assert (whole <= math.log(2)).all()


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("support", ["teacher", "student", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_finite_differences(kind: str, support: str, tail: str) -> None:
    teacher, student = logits_of(7, 2.0)
    ids = support_of(teacher, student, support, 5)

    def values(logits: Tensor) -> Tensor:
        return ours(teacher, logits, ids, kind, tail)

    assert torch.autograd.gradcheck(values, (student.requires_grad_(),), eps=1e-6, atol=1e-8, rtol=1e-5)
