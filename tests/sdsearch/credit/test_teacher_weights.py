"""Whose weights the teacher has: what it says is what a second model with these weights says."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch

from schemas.settings.root import HindsightSettings
from sdsearch.credit.teacher import compute_targets
from sdsearch.model.averages import as_weights_of, average_step, swapped_weights, trained_tensors
from sdsearch.model.policy import reference_weights, trainable_parameters, with_lora
from tests.sdsearch.credit.test_teacher import GROUPS, TOKENIZER, blocks_for, targets_for
from tests.sdsearch.credit.test_teacher import MODEL as STUDENT
from tests.support.builders import make_model

BLOCKS = blocks_for(GROUPS, HindsightSettings())


def credit_of(student: torch.nn.Module, teacher: object = None) -> list:
    from schemas.settings.root import DistillationSettings
    from sdsearch.credit.teacher import TeacherSettings

    settings = TeacherSettings(1.0, 400, 8, HindsightSettings(), DistillationSettings(top_k=6))
    return compute_targets(student, TOKENIZER, GROUPS, BLOCKS, settings, teacher)[2]


def moved(model: torch.nn.Module, by: float) -> torch.nn.Module:
    """A copy of the model some steps away; its output layer has moved too."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable_parameters(other).values():
            parameter += by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return other


def test_an_average_against_numpy() -> None:
    model = make_model()
    expected = {name: p.detach().numpy().astype(np.float64) for name, p in trainable_parameters(model).items()}
    average = trained_tensors(model)
    for step in range(1, 4):
        model = moved(model, 0.1 * step)
        average = average_step(average, model, 0.7)
        for name, parameter in trainable_parameters(model).items():
            expected[name] = 0.7 * expected[name] + (1 - 0.7) * parameter.detach().numpy().astype(np.float64)
    for name, tensor in average.items():
        assert tensor.dtype == torch.float32
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-5, atol=1e-6)
    assert trained_tensors(model)[name].data_ptr() != trainable_parameters(model)[name].data_ptr(), "a copy"


def test_without_decay_the_average_is_the_policy() -> None:
    model = make_model()
    average = average_step(trained_tensors(moved(model, 0.3)), model, 0.0)
    assert all(torch.equal(average[name], own) for name, own in trainable_parameters(model).items())


def test_a_teacher_of_other_weights_says_what_a_model_of_these_weights_says() -> None:
    """The second model's own numbers, passes and output layer; the student's stay those of the policy."""
    other = moved(STUDENT, 0.05)
    weights = {name: p.detach() for name, p in trainable_parameters(other).items()}
    before = {name: p.detach().clone() for name, p in trainable_parameters(STUDENT).items()}
    swapped = credit_of(STUDENT, partial(swapped_weights, STUDENT, as_weights_of(STUDENT, weights)))
    plain, of_other = credit_of(STUDENT), credit_of(other)
    assert [item.teacher_logprob for item in swapped] == [item.teacher_logprob for item in of_other]
    assert [item.teacher_entropy for item in swapped] == [item.teacher_entropy for item in of_other]
    assert [item.student_logprob for item in swapped] == [item.student_logprob for item in plain]
    assert [item.teacher_logprob for item in swapped] != [item.teacher_logprob for item in plain]
    assert all(torch.equal(p, before[name]) for name, p in trainable_parameters(STUDENT).items()), "given back"


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_initial_teacher_is_the_model_before_it_was_tuned(tuning: str) -> None:
    start = make_model().double()
    student = copy.deepcopy(start)
    if tuning == "lora":
        student = with_lora(student, 2, 4.0, "all-linear", 0).double()
    student = moved(student, 0.05)
    frozen = copy.deepcopy(start) if tuning == "full" else None
    taught = credit_of(student, partial(reference_weights, student, frozen))
    expected = credit_of(start)
    assert [c.teacher_logprob for c in taught] == pytest.approx([c.teacher_logprob for c in expected], rel=1e-9)
    assert [c.student_logprob for c in taught] == [c.student_logprob for c in credit_of(student)]


def test_adapters_alone_are_averaged() -> None:
    student = with_lora(make_model(), 2, 4.0, "all-linear", 0)
    assert all("lora_" in name for name in trained_tensors(student))
    assert len(trained_tensors(student)) > 4


def test_the_weights_are_given_back_after_an_error() -> None:
    model = make_model()
    before = {name: p.detach().clone() for name, p in trainable_parameters(model).items()}
    with (
        pytest.raises(ZeroDivisionError),
        swapped_weights(model, as_weights_of(model, trained_tensors(moved(model, 0.2)))),
    ):
        raise ZeroDivisionError
    assert all(torch.equal(p, before[name]) for name, p in trainable_parameters(model).items())


def test_given_no_weights_the_teacher_is_the_policy() -> None:
    assert credit_of(STUDENT) == targets_for(GROUPS, BLOCKS)[2]
