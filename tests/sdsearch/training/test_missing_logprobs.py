"""A token whose log-probability the sampler did not give is trained on as if sampler and trainer agreed."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from schemas.records.rollout import Generation
from schemas.settings.root import Settings
from sdsearch.model.batching import TokenSequence
from sdsearch.model.policy import trainable_parameters
from sdsearch.training.logprobs import score_once, sequence_logprobs
from sdsearch.training.loss import StepTerms, TrainingRollout, accumulate_gradient, weigh
from sdsearch.training.loss_settings import LossSettings
from storage.disk.codecs import records_to_table, table_to_records
from tests.support.builders import make_model

SEQUENCE = TokenSequence((5, 6), (10, 11, 12, 13), (0, 1, 3))


def loss_settings(**sections: object) -> LossSettings:
    return LossSettings.of(Settings(model={"path": "none"}, **sections))


def gradient(old: str, logprobs: tuple[float | None, ...]) -> tuple[StepTerms, dict[str, torch.Tensor]]:
    settings = loss_settings(grpo={"old_logprobs": old, "kl_coefficient": 0.0})
    model = make_model()
    rollout = TrainingRollout("r", SEQUENCE, logprobs, 1.0, (), torch.zeros(0, 1), torch.zeros(0, 2))
    scored = score_once(model, None, [rollout], settings)
    terms = accumulate_gradient(model, weigh(scored, settings.grpo), settings, 0.0)
    return terms, {name: parameter.grad for name, parameter in trainable_parameters(model).items()}


@pytest.mark.parametrize("old", ["sampler", "trainer"])
def test_a_missing_logprob_counts_as_a_ratio_of_one(old: str) -> None:
    own = float(sequence_logprobs(make_model(), [SEQUENCE], loss_settings())[0][1])
    missing_terms, missing = gradient(old, (-2.0, None, -3.0))
    told_terms, told = gradient(old, (-2.0, own, -3.0))
    assert (int(missing_terms.num_missing_logprobs), int(told_terms.num_missing_logprobs)) == (1, 0)
    torch.testing.assert_close(missing_terms.policy_loss, told_terms.policy_loss)
    torch.testing.assert_close(missing_terms.sampler_max_difference, told_terms.sampler_max_difference)
    for name, tensor in told.items():
        assert torch.isfinite(missing[name]).all()
        torch.testing.assert_close(missing[name], tensor, msg=name)


def test_the_largest_difference_is_the_largest() -> None:
    own = sequence_logprobs(make_model(), [SEQUENCE], loss_settings())[0]
    terms, _ = gradient("sampler", tuple((own + torch.tensor([0.0, -0.25, 0.125])).tolist()))
    assert float(terms.sampler_max_difference) == pytest.approx(0.25, abs=1e-5)


def test_a_record_holds_none_but_nothing_that_is_not_finite() -> None:
    generation = Generation(
        token_ids=(1, 2), sampled_logprobs=(None, -0.5), text="ab", stop_reason="length", query_positions=()
    )
    assert table_to_records(Generation, records_to_table(Generation, [generation])) == [generation]
    with pytest.raises(ValidationError, match="finite"):
        Generation(token_ids=(1,), sampled_logprobs=(float("nan"),), text="a", stop_reason="length", query_positions=())
