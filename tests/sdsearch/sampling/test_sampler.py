"""The transformers sampler against transformers itself: same log-probabilities, same greedy tokens, same draws."""

from __future__ import annotations

import pytest
import torch

from schemas.errors import UserError
from schemas.records.rollout import Group
from sdsearch.model.policy import with_lora
from sdsearch.protocol.prompting import render_frame
from sdsearch.sampling.rollouts import RolloutLimits, RolloutLoop
from sdsearch.sampling.transformers_sampler import TransformersSampler, sample_tokens
from tests.support.builders import make_model, make_question, make_tokenizer
from tests.support.fakes import FixedRetriever

TOKENIZER = make_tokenizer()


def roll_out(model: object, num_questions: int = 3, size: int = 3, temperature: float = 1.0) -> list[Group]:
    limits = RolloutLimits(3, 12, 200, 60, 512, 1)
    loop = RolloutLoop(
        TOKENIZER, TransformersSampler(model, TOKENIZER), FixedRetriever(), limits, render_frame(TOKENIZER, "compact")
    )
    return loop.roll_out(
        [make_question(number) for number in range(num_questions)],
        run_seed=5,
        iteration=1,
        policy_version=0,
        group_size=size,
        temperature=temperature,
    )


def full_logprobs(model: object, group: Group, rollout: object, temperature: float = 1.0) -> torch.Tensor:
    ids = torch.tensor([[*group.prompt_token_ids, *rollout.token_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0] / temperature
    return torch.log_softmax(logits, -1)[len(group.prompt_token_ids) - 1 : -1]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_are_the_models(kind: str, temperature: float) -> None:
    model = make_model(kind)
    num_tokens = 0
    for group in roll_out(model, temperature=temperature):
        for rollout in group.rollouts:
            expected = full_logprobs(model, group, rollout, temperature)
            for position, logprob in zip(rollout.completion_positions, rollout.sampled_logprobs, strict=True):
                assert float(expected[position, rollout.token_ids[position]]) == pytest.approx(logprob, abs=1e-4)
                num_tokens += 1
    assert num_tokens > 300


def test_greedy_takes_the_most_likely_token_and_siblings_agree() -> None:
    model = make_model()
    for group in roll_out(model, temperature=0.0):
        assert len({rollout.token_ids for rollout in group.rollouts}) == 1
        rollout = group.rollouts[0]
        expected = full_logprobs(model, group, rollout)
        for position in rollout.completion_positions:
            assert int(expected[position].argmax()) == rollout.token_ids[position]


def test_the_same_seed_draws_the_same_rollouts_in_any_batch() -> None:
    model = make_model()
    together, alone = roll_out(model, num_questions=3), roll_out(model, num_questions=1)
    assert roll_out(model, num_questions=3) == together
    assert [r.token_ids for r in alone[0].rollouts] == [r.token_ids for r in together[0].rollouts]
    assert len({rollout.token_ids for rollout in together[0].rollouts}) == 3


def test_lora_adapters_are_sampled_from() -> None:
    model = with_lora(make_model(), 4, 8.0, "all-linear", seed=1)
    base = roll_out(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.5)
    assert roll_out(model) != base
    with model.disable_adapter():
        assert roll_out(model) == base


def test_draws_follow_the_distribution() -> None:
    logits = torch.log(torch.tensor([0.1, 0.2, 0.7]))
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    tokens, logprobs = sample_tokens(logits.expand(20_000, -1), torch.ones(20_000), uniform)
    assert (torch.bincount(tokens) / 20_000).tolist() == pytest.approx([0.1, 0.2, 0.7], abs=1e-3)
    torch.testing.assert_close(logprobs, logits[tokens])
    cold, _ = sample_tokens(logits.expand(20_000, -1), torch.full((20_000,), 0.5), uniform)
    assert (torch.bincount(cold) / 20_000).tolist() == pytest.approx([1 / 54, 4 / 54, 49 / 54], abs=1e-3)
    nearly_one = torch.tensor([1 - 1e-12], dtype=torch.float64)
    edge, _ = sample_tokens(torch.tensor([[0.0, -torch.inf]]), torch.ones(1), nearly_one)
    assert edge.tolist() == [0], "a token of no probability is never drawn"


def test_nothing_is_sampled_from_weights_that_are_not_finite() -> None:
    model = make_model()
    with torch.no_grad():
        model.get_decoder().norm.weight[3] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(UserError, match="its logits are not finite"):
            roll_out(model, num_questions=1, size=1, temperature=temperature)
