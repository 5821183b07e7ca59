"""An update on several ranks is the update of one process: the equality table of sharding, tuning and type of weights.

Each rollout is a micro-batch of its own where the budget is one token: then the ranks compute what one process does,
and only the order of the sums differs. With a larger budget they cut the step in their own way.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from schemas.records.update import StepReport
from schemas.settings.root import Settings
from sdsearch.model.batching import TokenSequence
from sdsearch.model.policy import trainable_parameters, with_lora
from sdsearch.model.ranks import num_ranks, whole
from sdsearch.model.sharding import rank_mesh, shard
from sdsearch.training.loss import TrainingRollout
from sdsearch.training.optimiser import make_optimiser
from sdsearch.training.refusal import NonFiniteUpdateError
from sdsearch.training.update import update_policy
from tests.support.builders import make_model
from tests.support.ranks import on_ranks

K = 8


class Case(NamedTuple):
    """A row of the table."""

    tuning: str = "full"
    dtype: str = "float32"
    sharding: str = "full"
    budget: int = 1
    kl: float = 0.1
    checkpointing: bool = False

    @property
    def settings(self) -> Settings:
        return Settings(
            model={"path": "none", "tuning": self.tuning, "dtype": self.dtype},
            iterations=1,
            data={"questions_per_iteration": 3},
            rollout={"group_size": 3},
            grpo={"kl_coefficient": self.kl, "old_logprobs": "trainer"},
            update={
                "learning_rate": 1e-3,
                "rollouts_per_step": 3,
                "max_tokens_per_microbatch": self.budget,
                "gradient_parts_every": 1,
                "gradient_checkpointing": self.checkpointing,
                "head_chunk": 4,
            },
            distributed={"ranks": 4, "sharding": self.sharding},
            distillation={"alpha": 0.5, "warmup_iterations": 0, "top_k": K},
        )


class Trained(NamedTuple):
    """The first step's gradient before clipping, the weights after all steps, and what was reported."""

    gradient: Tensor
    weights: dict[str, Tensor]
    steps: list[StepReport]


def make_rollouts(bad: bool = False) -> list[TrainingRollout]:
    """Nine rollouts of three questions, of unequal lengths; five of them are distilled, in a step not all."""
    generator = torch.Generator().manual_seed(3)
    rollouts = []
    for index, advantage in enumerate([1.0, -0.5, -0.5, 0.7, -0.7, 0.2, 0.3, -0.3, 0.6]):
        tokens = torch.randint(0, 400, (12 + 5 * (index * 7 % 4),), generator=generator).tolist()
        reads = tuple(range(1, len(tokens), 2))
        sequence = TokenSequence((5, 6, index // 3), tuple(tokens), reads)
        distilled = reads[1:4] if index % 2 else ()
        ids = torch.randint(0, 400, (len(distilled), K), generator=generator)
        teacher = torch.randn(len(distilled), K + 1, generator=generator).log_softmax(-1)
        advantage = math.inf if bad and not index else advantage
        rollouts.append(
            TrainingRollout(f"r{index}", sequence, (-3.0,) * len(reads), advantage, distilled, ids, teacher)
        )
    return rollouts


def train(case: Case, bad: bool = False) -> Trained:
    """Take three optimiser steps on as many ranks as call it."""
    settings, dtype = case.settings, getattr(torch, case.dtype)
    model: Any = make_model("qwen2").to(dtype)
    reference: Any = make_model("qwen2", seed=9).to(dtype).requires_grad_(False)
    if case.tuning == "lora":
        model, reference = with_lora(model, 4, 8.0, "all-linear", seed=1), None
        with torch.no_grad():  # Adapters that are zero would hide the reference.
            for number, adapter in enumerate(trainable_parameters(model).values()):
                adapter.add_(torch.randn(adapter.shape, generator=torch.Generator().manual_seed(number)) * 0.05)
    if num_ranks() > 1:
        mesh = rank_mesh("cpu", settings.distributed)
        has_masters = case.tuning == "full" and dtype != torch.float32
        shard(model.float() if has_masters else model, mesh, dtype if has_masters else None)
        if reference is not None:
            shard(reference, mesh)
    optimiser = make_optimiser(model, settings.update)
    gradients: list[Tensor] = []
    trained = trainable_parameters(model)
    optimiser.register_step_pre_hook(lambda *_: gradients.append(flat({n: p.grad for n, p in trained.items()})))
    steps = update_policy(model, reference, optimiser, make_rollouts(bad), settings, iteration=1, steps_done=0)
    reports = list(steps)
    kept = dtype if case.tuning == "full" else torch.float32  # PEFT's adapters are fp32 beside bfloat16 weights.
    weights = {name: whole(weight.detach()).to(kept).clone() for name, weight in trainable_parameters(model).items()}
    return Trained(gradients[0], weights, reports)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([whole(tensor.detach()).double().flatten() for tensor in tensors.values()])


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / one.norm())


NUMBERS = (
    "loss",
    "policy_loss",
    "sd_loss",
    "kl",
    "entropy",
    "grad_norm",
    "grad_norm_grpo",
    "grad_norm_sd",
    "ratio_max",
)


def assert_alike(alone: Trained, ranked: Trained, gradient: float, weights: float, numbers: float) -> None:
    assert distance(alone.gradient, ranked.gradient) <= gradient
    assert distance(flat(alone.weights), flat(ranked.weights)) <= weights
    for one, several in zip(alone.steps, ranked.steps, strict=True):
        for name in NUMBERS:
            expected, got = getattr(one, name), getattr(several, name)
            assert got == pytest.approx(expected, rel=numbers, abs=numbers), (one.step, name)
        assert (one.num_read_tokens, one.num_distilled_tokens) == (
            several.num_read_tokens,
            several.num_distilled_tokens,
        )
        assert one.waiting_share is None
        assert several.waiting_share is not None
        assert 0 <= several.waiting_share < 1


LIGHT = [Case(), Case(tuning="lora", budget=100)]
TABLE = [
    (2, Case(budget=100)),
    (2, Case(kl=0.0)),
    (2, Case(checkpointing=True)),
    (2, Case(sharding="replicate")),
    (2, Case(tuning="lora", sharding="replicate")),
    (2, Case(dtype="bfloat16")),
    (2, Case(tuning="lora", dtype="bfloat16")),
    (4, Case()),
    (4, Case(budget=100)),
    (4, Case(tuning="lora")),
    (4, Case(sharding="hybrid")),
    (4, Case(tuning="lora", sharding="hybrid")),
    (4, Case(dtype="bfloat16")),
    (4, Case(dtype="bfloat16", sharding="hybrid")),
]


def check(case: Case, ranked: list[Trained]) -> None:
    alone = train(case)
    for other in ranked[1:]:
        assert other.steps == ranked[0].steps
        assert all(torch.equal(other.weights[name], weight) for name, weight in ranked[0].weights.items())
    if case.dtype == "bfloat16":
        assert_alike(alone, ranked[0], gradient=2e-2, weights=4e-3, numbers=2e-2)
    else:
        assert_alike(alone, ranked[0], gradient=1e-6, weights=1e-6, numbers=2e-5)


def refused(case: Case) -> str:
    try:
        train(case, bad=True)
    except NonFiniteUpdateError as error:
        return str(error)
    return ""


def light() -> tuple[list[Trained], str]:
    return [train(case) for case in LIGHT], refused(LIGHT[0])


def test_two_ranks_train_as_one_process_and_refuse_what_it_refuses() -> None:
    """One start of two ranks for all of it."""
    ranked = on_ranks(2, light)
    for number, case in enumerate(LIGHT):
        check(case, [trained[number] for trained, _ in ranked])
    told = refused(LIGHT[0])
    assert "r0 (1 of 3)" in told
    for _, said in ranked:
        assert "r0 (1 of 3)" in said
        assert said == ranked[0][1]


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "case"), TABLE)
def test_the_whole_table(ranks: int, case: Case) -> None:
    check(case, on_ranks(ranks, train, case))
