"""A training step put together twice from the same records: by the project's stages, and for the naive objective."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from schemas.records.hindsight import HindsightBlock
from schemas.records.rollout import Group
from schemas.records.score import Score
from schemas.records.teacher import QueryCredit, TeacherTargets
from schemas.settings.root import Settings
from sdsearch.credit.hindsight import build_blocks
from sdsearch.credit.scoring import score_groups
from sdsearch.credit.teacher import TargetTensors, TeacherSettings, compute_targets
from sdsearch.model.policy import trainable_parameters, with_lora
from sdsearch.training.logprobs import score_once
from sdsearch.training.loss import ScoredRollout, StepTerms, TrainingRollout, accumulate_gradient, weigh
from sdsearch.training.loss_settings import LossSettings
from sdsearch.training.training_set import training_rollouts
from tests.golden.naive import Naive, NaiveLoss, at_sampled, logprobs_of
from tests.support.builders import ModelKind, make_groups, make_model, make_tokenizer, with_logprobs

ALPHA = 5.0


def make_settings(**sections: Any) -> Settings:
    """Settings in which every term counts: all of alpha, a KL, a small support, a temperature that is not one."""
    distillation = {"warmup_iterations": 0, "alpha": ALPHA, "top_k": 7, **sections.pop("distillation", {})}
    grpo = {"kl_coefficient": 0.03, **sections.pop("grpo", {})}
    rollout = {"temperature": 0.8, **sections.pop("rollout", {})}
    model = {"path": "none", **sections.pop("model", {})}
    return Settings(model=model, distillation=distillation, grpo=grpo, rollout=rollout, **sections)


def make_blocks(
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Group],
    scores: Sequence[Score],
    settings: Settings,
    max_context_tokens: int = 512,
) -> list[HindsightBlock]:
    """The hindsight stage's blocks."""
    return [
        block
        for group in groups
        for block in build_blocks(
            group,
            [score for score in scores if score.group_id == group.id],
            settings=settings.hindsight,
            seed=settings.seed,
            tokenizer=tokenizer,
            max_context_tokens=max_context_tokens,
        )
    ]


def teach(
    teacher: nn.Module,
    groups: Sequence[Group],
    blocks: Sequence[HindsightBlock],
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[TargetTensors, list[TeacherTargets], list[QueryCredit]]:
    """The teacher stage's targets."""
    return compute_targets(
        teacher,
        tokenizer or make_tokenizer(),
        groups,
        blocks,
        replace(TeacherSettings.of(settings), max_tokens_per_microbatch=300),
    )


@dataclass(frozen=True)
class Case:
    """A policy a few steps away from the weights that sampled and taught, and what both objectives read."""

    policy: nn.Module
    frozen: nn.Module | None
    rollouts: Sequence[TrainingRollout]
    scored: Sequence[ScoredRollout]
    naive: Naive
    settings: Settings

    def ours(self, settings: Settings | None = None) -> tuple[StepTerms, dict[str, Tensor]]:
        """The real objective's terms and parameter gradients, all rollouts in one step."""
        chosen = settings or self.settings
        self.policy.zero_grad()
        members = weigh(self.scored, chosen.grpo)
        terms = accumulate_gradient(self.policy, members, LossSettings.of(chosen), self.naive.alpha)
        return terms, gradients_of(self.policy)

    def theirs(self) -> tuple[NaiveLoss, dict[str, Tensor]]:
        """The naive objective's terms and parameter gradients."""
        self.policy.zero_grad()
        loss = self.naive.loss(self.policy)
        loss.total.backward()
        return loss, gradients_of(self.policy)


def make_case(
    settings: Settings,
    groups: Sequence[Group] | None = None,
    kind: ModelKind = "llama",
    tokenizer: PreTrainedTokenizerBase | None = None,
    alpha: float = ALPHA,
    moved: float = 0.01,
    missing: float = 0.0,
    make: Callable[[ModelKind, int], nn.Module] = make_model,
) -> Case:
    """Run the stages before the update over `groups` (default: one) in float64.

    moved: how far the policy has gone from the weights that sampled and taught; missing: share of the sampled tokens
    whose log-probability the sampler did not give.
    """
    tokenizer = tokenizer or make_tokenizer()
    lora = settings.model.tuning == "lora"
    policy, reference = make(kind, 1), make(kind, 1).double()
    if lora:
        policy = with_lora(policy, 4, 8.0, "all-linear", seed=0)
    move(policy, 0.05 if lora else 0.02, seed=1)  # what was learned in the iterations before
    policy = policy.double()
    teacher = copy.deepcopy(policy)
    groups = make_groups(tokenizer, num_groups=1) if groups is None else groups
    groups = sampled_by(teacher, groups, settings.rollout.temperature, missing)
    scores = score_groups(groups, settings.reward, settings.grpo)
    blocks = make_blocks(tokenizer, groups, scores, settings)
    tensors, pointers, _ = teach(teacher, groups, blocks, settings, tokenizer)
    rollouts = training_rollouts(groups, scores, pointers, tensors)
    frozen = None if lora else reference
    # The ratio's denominator is the weights before the update, so it is scored before the policy moves.
    scored = score_once(policy, frozen, rollouts, LossSettings.of(settings))
    move(policy, moved, seed=2)
    naive = Naive(teacher, reference, groups, scores, blocks, settings, alpha)
    return Case(policy, frozen, rollouts, scored, naive, settings)


def sampled_by(model: nn.Module, groups: Sequence[Group], temperature: float, missing: float) -> list[Group]:
    """The groups with log-probabilities about the model's own, so that ratios fall inside, below and above the clip."""
    draw = random.Random(0)
    sampled = []
    for group in groups:
        with torch.no_grad():
            own = [
                at_sampled(logprobs_of(model, group.prompt_token_ids, rollout, temperature), rollout).tolist()
                for rollout in group.rollouts
            ]
        noisy = [[value + draw.uniform(-1, 1) * draw.choice((0.1, 0.3, 1.5)) for value in row] for row in own]
        # Stored log-probabilities are fp32: a multiple of 2^-10 is exact in both objectives.
        exact = [[None if draw.random() < missing else round(value * 1024) / 1024 for value in row] for row in noisy]
        sampled.append(with_logprobs(group, lambda rollout, place, rows=exact: rows[rollout.index][place]))
    return sampled


def move(model: nn.Module, distance: float, seed: int) -> None:
    """Add noise to the trainable parameters, the same for equal models."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(distance * noise.to(parameter.dtype))


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters' gradients; zeros where there is none."""
    parameters = trainable_parameters(model)
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad.clone()
        for name, value in parameters.items()
    }


def assert_close_gradients(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], rtol: float = 1e-5) -> None:
    """Each entry to `rtol` of its own size, small ones to a tenth of that share of the largest.

    Token weights and advantages are fp32 (6e-8), which shows where large terms cancel.
    """
    scale = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(
            ours[name], gradient, rtol=rtol, atol=0.1 * rtol * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_same_loss(case: Case) -> None:
    """Both objectives agree in each term and in every parameter's gradient."""
    terms, ours = case.ours()
    naive, theirs = case.theirs()
    for name in ("policy_loss", "kl", "sd_loss"):
        torch.testing.assert_close(
            getattr(terms, name).double(), getattr(naive, name).detach(), rtol=1e-6, atol=1e-9, msg=name
        )
    assert_close_gradients(ours, theirs)
