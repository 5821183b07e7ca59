"""The update's steps: refused when not finite, resumed from stored tensors, order and rates by seed and step."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch

from schemas.settings.root import Settings, UpdateSettings
from sdsearch.model.batching import TokenSequence
from sdsearch.model.policy import trainable_parameters, with_lora
from sdsearch.training.logprobs import score_once
from sdsearch.training.loss import TrainingRollout, accumulate_gradient, weigh
from sdsearch.training.loss_settings import LossSettings
from sdsearch.training.optimiser import (
    learning_rate_at,
    load_optimiser_state,
    make_optimiser,
    optimiser_state,
    scale_gradient,
)
from sdsearch.training.refusal import NonFiniteUpdateError
from sdsearch.training.update import optimiser_steps, update_policy
from tests.support.builders import make_model

NO_TARGETS = (torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1))


def settings_of(**update: object) -> Settings:
    return Settings(
        model={"path": "none"},
        iterations=4,
        data={"questions_per_iteration": 2},
        rollout={"group_size": 3},
        update={"learning_rate": 1e-2, "rollouts_per_step": 3, **update},
        distillation={"enabled": False},
    )


def make_rollouts(seed: int = 0, logprob: float = -3.0) -> list[TrainingRollout]:
    generator = torch.Generator().manual_seed(seed)
    rollouts = []
    for index, advantage in enumerate([1.0, -0.5, -0.5, 0.7, -0.7, 0.0]):
        tokens = torch.randint(0, 400, (12 + 3 * index,), generator=generator).tolist()
        reads = tuple(range(1, len(tokens), 2))
        sequence = TokenSequence((5, 6, index // 2), tuple(tokens), reads)
        rollouts.append(TrainingRollout(f"r{index}", sequence, (logprob,) * len(reads), advantage, (), *NO_TARGETS))
    return rollouts


def steps(model: torch.nn.Module, optimiser: object, settings: Settings, iteration: int, done: int) -> list:
    reference = make_model(seed=9)
    rollouts = make_rollouts(iteration)
    return list(update_policy(model, reference, optimiser, rollouts, settings, iteration=iteration, steps_done=done))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_tensors_continue_the_run_bit_for_bit(dtype: torch.dtype) -> None:
    settings = settings_of(weight_decay=0.01, max_tokens_per_microbatch=30)
    model = make_model().to(dtype)
    optimiser = make_optimiser(model, settings.update)
    steps(model, optimiser, settings, 1, 0)
    stored = {name: tensor.clone() for name, tensor in optimiser_state(model, optimiser).items()}
    again = copy.deepcopy(model)
    fresh = make_optimiser(again, settings.update)
    load_optimiser_state(again, fresh, stored)
    first, second = steps(model, optimiser, settings, 2, 2), steps(again, fresh, settings, 2, 2)
    assert first == second
    assert [report.step for report in first] == [3, 4]
    for name, parameter in trainable_parameters(model).items():
        assert torch.equal(parameter, trainable_parameters(again)[name]), name
    with pytest.raises(ValueError, match="does not fit"):
        load_optimiser_state(again, fresh, {name: t for name, t in stored.items() if "norm" not in name})


def test_a_step_that_is_not_finite_is_refused_and_told() -> None:
    """One rollout's log-probability is infinite: its share alone is not finite, and nothing changes."""
    settings = settings_of(rollouts_per_step=6).model_copy(update={"seed": 1})
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    rollouts = make_rollouts()
    rollouts[0] = TrainingRollout("bad", rollouts[0].sequence, (float("-inf"),) * 6, 1.0, (), *NO_TARGETS)
    optimiser = make_optimiser(model, settings.update)
    with pytest.raises(NonFiniteUpdateError, match=r"the last checkpoint is intact.*: bad \(1 of 6\)") as caught:
        list(update_policy(model, make_model(seed=9), optimiser, rollouts, settings, iteration=1, steps_done=0))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert optimiser.state == {}
    told = caught.value.refused
    assert (told.iteration, told.step, told.settings, told.alpha) == (1, 1, settings, 0.0)
    assert not math.isfinite(told.loss) or not math.isfinite(told.grad_norm)
    assert told.weights_not_finite == ()
    assert told.gradients_not_finite
    assert [item.rollout_id for item in told.rollouts] != [item.rollout_id for item in rollouts], "the step's own order"
    for item in told.rollouts:
        rollout = next(r for r in rollouts if r.rollout_id == item.rollout_id)
        assert (item.prompt_token_ids, item.token_ids) == (rollout.sequence.context_ids, rollout.sequence.token_ids)
        assert (item.sampled_logprobs, item.advantage) == (rollout.sampled_logprobs, rollout.advantage)
        assert len(item.policy_logprobs) == len(item.reference_logprobs) == len(rollout.sampled_logprobs)
        assert item.trainer_logprobs is None
        shares = (item.policy_loss, item.kl, item.sd_loss, item.grad_norm)
        assert all(map(math.isfinite, shares)) == (item.rollout_id != "bad"), shares
    assert '"-Infinity"' in told.model_dump_json(), "numbers that JSON has not are strings"


def test_weights_that_are_not_finite_are_named() -> None:
    settings = settings_of(rollouts_per_step=6)
    model = make_model()
    with torch.no_grad():
        trainable_parameters(model)["model.norm.weight"][3] = float("nan")
    with pytest.raises(NonFiniteUpdateError, match=r"\(6 of 6\).*not finite already: model.norm.weight") as caught:
        steps(model, make_optimiser(model, settings.update), settings, 1, 0)
    assert caught.value.refused.weights_not_finite == ("model.norm.weight",)


@pytest.mark.parametrize("per_step", [2, 4, 3])
def test_siblings_stay_together_over_the_steps(per_step: int) -> None:
    """Every rollout is in one step of each epoch, next to its siblings; two epochs differ in the groups' order."""
    settings = settings_of(rollouts_per_step=per_step, epochs=2).model_copy(update={"seed": 2})
    scored = score_once(make_model(), make_model(seed=9), make_rollouts(), LossSettings.of(settings))
    arguments = (scored, settings.update, settings.grpo, settings.seed, 1)
    steps, again = (
        [[member.scored.rollout for member in members] for members in optimiser_steps(*arguments)] for _ in range(2)
    )
    assert steps == again
    assert [len(step) for step in steps] == ([2, 2, 2] if per_step == 2 else [4, 2] if per_step == 4 else [3, 3]) * 2
    order = [rollout.rollout_id for step in steps for rollout in step]
    epochs = order[:6], order[6:]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        pairs = [epoch[place : place + 2] for place in (0, 2, 4)]
        assert sorted(pairs) == [["r0", "r1"], ["r2", "r3"], ["r4", "r5"]]


def test_gradient_clipping_and_none() -> None:
    norms = {}
    for max_norm in (0.0, 1e-3, 1e6):
        model = make_model()
        settings = LossSettings.of(settings_of(max_grad_norm=max_norm))
        members = weigh(score_once(model, make_model(seed=9), make_rollouts(), settings), settings.grpo)
        accumulate_gradient(model, members, settings, 0.0)
        before = scale_gradient(model, max_norm)
        norms[max_norm] = scale_gradient(model, 0.0)
        assert before > 0.1
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-4)
    assert norms[0.0] == norms[1e6] == before


def test_small_steps_add_up_where_weights_are_rounded() -> None:
    """AdamW moves by about the rate a step: less than bfloat16 resolves at most weights, but forty of them are more."""
    settings = settings_of(learning_rate=1e-4, rollouts_per_step=6)
    full, rounded = make_model(), make_model().to(torch.bfloat16)
    start = copy.deepcopy(rounded.state_dict())
    optimisers = [make_optimiser(model, settings.update) for model in (full, rounded)]
    for _ in range(40):
        generator = torch.Generator().manual_seed(5)
        for model, optimiser in zip((full, rounded), optimisers, strict=True):
            generator.manual_seed(5)
            for parameter in trainable_parameters(model).values():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            optimiser.step()
    name = "model.layers.0.mlp.up_proj.weight"
    moved = (rounded.state_dict()[name] - start[name]).float()
    expected = (trainable_parameters(full)[name] - make_model().state_dict()[name]).detach()
    assert float(expected.abs().mean()) == pytest.approx(4e-3, rel=0.02)
    assert float((moved * expected).sum() / expected.square().sum()) == pytest.approx(1.0, abs=0.05)
    state = optimiser_state(rounded, optimisers[1])
    again = copy.deepcopy(rounded)
    fresh = make_optimiser(again, settings.update)
    load_optimiser_state(again, fresh, state)
    assert {name: tensor.tolist() for name, tensor in optimiser_state(again, fresh).items()} == {
        name: tensor.tolist() for name, tensor in state.items()
    }
    with pytest.raises(ValueError, match="does not fit"):
        load_optimiser_state(again, fresh, {n: t for n, t in state.items() if not n.startswith("master.")})


def test_a_positive_advantage_makes_tokens_likelier() -> None:
    settings = settings_of(rollouts_per_step=6, learning_rate=1e-3)
    model = make_model()
    rollouts = make_rollouts(logprob=0.0)
    good = rollouts[0]
    alone = [TrainingRollout("good", good.sequence, good.sampled_logprobs, 1.0, (), *NO_TARGETS)]

    def logprob() -> float:
        with torch.no_grad():
            ids = torch.tensor([[*good.sequence.context_ids, *good.sequence.token_ids]])
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0], -1)
            return float(sum(logprobs[2 + read, good.sequence.token_ids[read]] for read in good.sequence.reads))

    before = logprob()
    optimiser = make_optimiser(model, settings.update)
    on_policy = [
        TrainingRollout("good", good.sequence, tuple(values.tolist()), 1.0, (), *NO_TARGETS)
        for values in [score_once(model, make_model(), alone, LossSettings.of(settings))[0].reference_N]
    ]
    list(update_policy(model, make_model(), optimiser, on_policy, settings, iteration=1, steps_done=0))
    assert logprob() > before


def test_tokens_that_are_not_read_get_no_gradient() -> None:
    """Changing what the environment wrote after the last read, or its own prediction, changes nothing."""
    settings = LossSettings.of(settings_of())
    model = make_model()
    sequence = TokenSequence((5, 6), (10, 11, 12, 13, 14), (0, 1))
    longer = TokenSequence((5, 6), (10, 11, 200, 201, 202), (0, 1))
    gradients = []
    for candidate in (sequence, longer):
        rollout = TrainingRollout("r", candidate, (-2.0, -2.0), 1.0, (), *NO_TARGETS)
        model.zero_grad()
        accumulate_gradient(
            model, weigh(score_once(model, make_model(), [rollout], settings), settings.grpo), settings, 0.0
        )
        gradients.append({n: p.grad.clone() for n, p in trainable_parameters(model).items()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_lora_trains_the_adapters_alone_and_its_reference_is_the_base() -> None:
    settings = settings_of()
    base = make_model()
    model = with_lora(make_model(), 4, 8.0, "all-linear", seed=3)
    optimiser = make_optimiser(model, settings.update)
    list(update_policy(model, None, optimiser, make_rollouts(), settings, iteration=1, steps_done=0))
    with torch.no_grad():
        ids = torch.tensor([[5, 6, 7, 8]])
        tuned = model(input_ids=ids).logits
        with model.disable_adapter():
            assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)
    assert not torch.allclose(tuned, base(input_ids=torch.tensor([[5, 6, 7, 8]])).logits)
    assert all("lora" in name for name in trainable_parameters(model))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.5, 1, 1, 1, 1, 1]), ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]), ("cosine", None)],
)
def test_learning_rates(schedule: str, expected: list[float] | None) -> None:
    settings = UpdateSettings(learning_rate=1.0, warmup_steps=2, schedule=schedule)
    rates = [learning_rate_at(step, 6, settings) for step in range(1, 7)]
    if expected:
        assert rates == expected
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[2:]))
    assert rates[-1] > 0


def test_a_rate_that_throws_the_weights_away_is_noticed_before_the_next_step() -> None:
    settings = settings_of(learning_rate=1e30)
    model = make_model()
    reports = update_policy(
        model, make_model(seed=9), make_optimiser(model, settings.update), make_rollouts(), settings, iteration=1,
        steps_done=0,
    )  # fmt: skip
    assert math.isfinite(next(reports).loss), "the first step is taken with the weights as they were"
    after_first = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteUpdateError, match="optimiser step 2"):
        next(reports)
    assert all(torch.equal(tensor, after_first[name]) for name, tensor in model.state_dict().items())
