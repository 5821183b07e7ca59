"""The reference of the KL: the base weights under the adapters, or a frozen copy."""

from __future__ import annotations

import torch

from sdsearch.model.batching import TokenSequence
from sdsearch.model.policy import reference_weights, trainable_parameters, with_lora
from sdsearch.training.logprobs import score_once, sequence_logprobs
from sdsearch.training.loss import TrainingRollout
from sdsearch.training.loss_settings import LossSettings
from tests.golden.cases import make_settings, move
from tests.support.builders import make_model

IDS = torch.tensor([[5, 6, 7, 8, 9]])
SEQUENCE = TokenSequence((5, 6), (7, 8, 9), (0, 2))
ROLLOUT = TrainingRollout("r", SEQUENCE, (-1.0, -2.0), 1.0, (), torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1))


def loss_settings(**sections: object) -> LossSettings:
    return LossSettings.of(make_settings(**sections))


@torch.no_grad()
def test_without_adapters_the_logits_are_the_bases_own() -> None:
    base, model = make_model(), with_lora(make_model(), 4, 8.0, "all-linear", seed=3)
    move(model, 0.2, seed=1)
    tuned = model(input_ids=IDS).logits
    with reference_weights(model, None) as reference:
        assert torch.equal(reference(input_ids=IDS).logits, base(input_ids=IDS).logits)
    assert torch.equal(model(input_ids=IDS).logits, tuned), "the adapters are on again"
    assert not torch.allclose(tuned, base(input_ids=IDS).logits)
    (scored,) = score_once(model, None, [ROLLOUT], loss_settings())
    assert torch.equal(scored.reference_N, sequence_logprobs(base, [SEQUENCE], loss_settings())[0])


@torch.no_grad()
def test_full_tuning_is_held_to_its_frozen_copy() -> None:
    model, frozen = make_model(seed=1), make_model(seed=2)
    (scored,) = score_once(model, frozen, [ROLLOUT], loss_settings(grpo={"old_logprobs": "trainer"}))
    assert torch.equal(scored.reference_N, sequence_logprobs(frozen, [SEQUENCE], loss_settings())[0])
    assert torch.equal(scored.trainer_N, sequence_logprobs(model, [SEQUENCE], loss_settings())[0])
    assert set(trainable_parameters(model)) == {name for name, _ in model.named_parameters()}
