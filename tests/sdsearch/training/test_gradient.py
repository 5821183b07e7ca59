"""The step's gradient under bfloat16 weights: micro-batches add up in fp32, in each part, and reach the masters so."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from flows.training.noise import told_of_noise
from schemas.settings.root import Settings
from sdsearch.model.batching import TokenSequence
from sdsearch.model.policy import trainable_parameters
from sdsearch.training.gradient import sum_precisely, zero_gradient
from sdsearch.training.lm_head import read_tokens
from sdsearch.training.loss import ScoredRollout, TrainingRollout, accumulate_gradient, weigh
from sdsearch.training.loss_settings import LossSettings
from sdsearch.training.optimiser import make_optimiser, scale_gradient
from sdsearch.training.update import update_policy
from tests.support.builders import make_model
from tests.support.records import make_update

NUM_ROLLOUTS, ALPHA = 24, 1e-3
Gradient = dict[str, Tensor]


def settings_of(max_tokens: int = 1, **update: object) -> Settings:
    """A budget of one token makes every rollout a micro-batch of its own."""
    return Settings(
        model={"path": "none", "dtype": "bfloat16"},
        iterations=2,
        data={"questions_per_iteration": 4},
        rollout={"group_size": 6},
        grpo={"kl_coefficient": 0.0},
        distillation={"alpha": ALPHA, "warmup_iterations": 0},
        update={"max_tokens_per_microbatch": max_tokens, "max_grad_norm": 0.0, **update},
    )


def make_rollouts(with_teacher: bool = True) -> list[TrainingRollout]:
    draw = torch.Generator().manual_seed(0)
    rollouts = []
    for index in range(NUM_ROLLOUTS):
        tokens = torch.randint(0, 400, (14,), generator=draw).tolist()
        distilled = (2, 3, 4) if with_teacher else ()
        ids = torch.stack([torch.randperm(400, generator=draw)[:5] for _ in range(3)])[: len(distilled)]
        teacher = torch.log_softmax(torch.randn(3, 6, generator=draw), -1)[: len(distilled)]
        sequence = TokenSequence((5, 6, index), tuple(tokens), tuple(range(1, 13)))
        advantage = float(torch.randn((), generator=draw))
        rollouts.append(TrainingRollout(f"r{index}", sequence, (-6.0,) * 12, advantage, distilled, ids, teacher))
    return rollouts


def gradient_of(model: nn.Module) -> Gradient:
    return {name: parameter.grad for name, parameter in trainable_parameters(model).items()}


def parts_of(model: nn.Module, members: list, settings: Settings) -> tuple[Gradient, Gradient]:
    """The GRPO and the SD part of these rollouts' gradient."""
    model.zero_grad()
    sd_gradient = zero_gradient(model)
    accumulate_gradient(model, members, LossSettings.of(settings), ALPHA, sd_gradient)
    return gradient_of(model), dict(zip(trainable_parameters(model), sd_gradient, strict=True))


def assert_is_the_sum(total: Gradient, parts: list[Gradient]) -> None:
    """A rounding of bfloat16 is 4e-3, one of fp32 6e-8."""
    for name, value in total.items():
        summed = torch.stack([part[name].double() for part in parts]).sum(0)
        assert value.dtype == torch.float32, name
        assert float((value - summed).norm() / summed.norm()) < 1e-6, name


@pytest.fixture(scope="module")
def members() -> list:
    scored = [ScoredRollout(r, torch.tensor(r.sampled_logprobs), None, None) for r in make_rollouts()]
    return weigh(scored, settings_of().grpo)


@pytest.fixture
def model() -> nn.Module:
    return make_model().to(torch.bfloat16)


def test_many_micro_batches_are_the_exact_sum_of_their_gradients(model: nn.Module, members: list) -> None:
    """Each micro-batch's gradient is made alone, rounded to bfloat16 by the model itself, and summed in float64."""
    settings = settings_of()
    alone = []
    for member in members:
        model.zero_grad()
        accumulate_gradient(model, [member], LossSettings.of(settings), ALPHA)
        alone.append(gradient_of(model))
    rounded = alone[0]["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(rounded, rounded.bfloat16().float()), "a backward pass gives bfloat16"
    model.zero_grad()
    accumulate_gradient(model, members, LossSettings.of(settings), ALPHA)
    assert_is_the_sum(gradient_of(model), alone)


def test_each_part_is_the_exact_sum_too(model: nn.Module, members: list) -> None:
    settings = settings_of()
    alone = [parts_of(model, [member], settings) for member in members]
    grpo, sd = parts_of(model, members, settings)
    assert_is_the_sum(grpo, [part for part, _ in alone])
    assert_is_the_sum(sd, [part for _, part in alone])


def test_chunks_of_the_head_are_summed_precisely_too(model: nn.Module) -> None:
    """The head's weight has a gradient of every chunk of positions, within one backward pass."""
    hidden_ND = torch.randn(40, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    targets_N = torch.arange(40)

    def gradient(start: int, end: int, chunk: int) -> Gradient:
        model.zero_grad()
        sum_precisely(model)
        read_tokens(model, hidden_ND[start:end], targets_N[start:end], None, 1.0, chunk).logprob_N.sum().backward()
        return {"head": model.lm_head.weight.grad}

    assert_is_the_sum(gradient(0, 40, 1), [gradient(place, place + 1, 1) for place in range(40)])


def test_a_step_without_gradient_is_zeros_in_fp32(model: nn.Module, members: list) -> None:
    model.zero_grad()
    accumulate_gradient(model, [], LossSettings.of(settings_of()), ALPHA)
    for gradient in gradient_of(model).values():
        assert gradient.dtype == torch.float32
        assert not gradient.any()


def test_the_norm_is_not_rounded_to_bfloat16(model: nn.Module, members: list) -> None:
    model.zero_grad()
    accumulate_gradient(model, members, LossSettings.of(settings_of()), ALPHA)
    exact = torch.stack([g.double().square().sum() for g in gradient_of(model).values()]).sum().sqrt()
    assert scale_gradient(model, 0.0) == pytest.approx(float(exact), rel=1e-6)
    scale_gradient(model, float(exact) / 2)
    assert scale_gradient(model, 0.0) == pytest.approx(float(exact) / 2, rel=1e-5)


def test_the_masters_take_the_fp32_sum(model: nn.Module, members: list) -> None:
    """One step of the optimiser is torch's own AdamW on fp32 weights with that gradient, bit for bit."""
    settings = settings_of(learning_rate=1e-3)
    optimiser = make_optimiser(model, settings.update)
    model.zero_grad()
    accumulate_gradient(model, members, LossSettings.of(settings), ALPHA)
    plain = {name: p.detach().float().requires_grad_() for name, p in trainable_parameters(model).items()}
    for name, gradient in gradient_of(model).items():
        plain[name].grad = gradient.clone()
    torch.optim.AdamW(plain.values(), lr=1e-3, weight_decay=0.0, fused=True).step()
    optimiser.step()
    for master, (name, expected) in zip(optimiser.param_groups[0]["params"], plain.items(), strict=True):
        assert torch.equal(master, expected), name


@pytest.mark.parametrize("every", [0, 1])
def test_an_update_leaves_no_gradient_behind(every: int) -> None:
    """Sampling, which comes next, has the memory; parts that are measured add up to the same step."""
    model = make_model().to(torch.bfloat16)
    twin = copy.deepcopy(model)
    settings = settings_of(64, rollouts_per_step=12, gradient_parts_every=every)
    optimiser = make_optimiser(model, settings.update)
    reports = list(update_policy(model, None, optimiser, make_rollouts(), settings, iteration=1, steps_done=0))
    assert len(reports) == 2
    assert all((report.grad_norm_sd is not None) == bool(every) for report in reports)
    expected = [report.grad_norm_grpo / 26 if every else None for report in reports]
    assert [report.grad_noise for report in reports] == expected
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(master.grad is None for master in optimiser.param_groups[0]["params"])
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_distillation_gradient_below_the_rounding_is_told() -> None:
    step = make_update().steps[0]

    def told(**changed: float | None) -> str | None:
        return told_of_noise(3, [step.model_copy(update=changed)])

    assert "iteration 3: the distillation gradient is about 0.25 of the error" in (told(grad_norm_sd=0.0625) or "")
    assert told(grad_norm_sd=0.25) is None
    assert told(grad_norm_sd=0.0625, alpha=0.0) is None, "a warm-up has nothing to lose"
    assert told(grad_norm_sd=0.0625, grad_noise=None) is None
