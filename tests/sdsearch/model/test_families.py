"""Small random models of many families: sampler and update give the plain model's numbers, or the run is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from schemas.errors import UserError
from sdsearch.model.policy import causal_lm, context_limit, head, with_lora
from sdsearch.model.visibility import Sees
from sdsearch.sampling.ports import Respond, SampledTurn, TurnRequest
from sdsearch.sampling.slots import SlotCache
from sdsearch.sampling.transformers_sampler import TransformersSampler
from sdsearch.training.selfcheck import check_model, compare, ordinary_tokens
from sdsearch.training.trial import num_trial_tokens, write_conversations
from tests.support.builders import make_tokenizer
from tests.support.families import WINDOW, small_model

TOKENIZER = make_tokenizer()
NAMED = [
    *("llama", "qwen2", "qwen2 without a window", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "granite"),
    *("cohere", "stablelm", "gpt2", "phi3", "olmo2", "gpt_oss", "mixtral", "llama4_text", "deepseek_v3"),
]


def check(model: nn.Module, sampler: TransformersSampler | None = None) -> None:
    sampler = sampler or TransformersSampler(model, TOKENIZER)
    check_model(model, sampler, ordinary_tokens(TOKENIZER, model), longest=500)


def plain_logprobs(model: nn.Module, ids: Sequence[int]) -> Tensor:
    """transformers alone, by its own eager attention."""
    whole = causal_lm(model)
    former = whole.config._attn_implementation
    whole.set_attn_implementation("eager")
    with torch.no_grad():
        logits = whole(input_ids=torch.tensor([ids])).logits[0]
    whole.set_attn_implementation(former)
    return logits.log_softmax(-1)


@pytest.mark.parametrize("family", NAMED)
def test_sampler_and_update_are_the_plain_model(family: str) -> None:
    model = small_model(family)
    differences = compare(model, TransformersSampler(model, TOKENIZER), ordinary_tokens(TOKENIZER, model), 500)
    assert [difference.path for difference in differences] == ["update", "sampler"]
    assert max(difference.largest for difference in differences) < 1e-4
    check(model)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt_oss", "llama4_text"])
def test_flex_attention_is_the_plain_model_too(family: str) -> None:
    (update,) = compare(small_model(family, "flex"), None, range(10, 400), 500)
    assert update.largest < 1e-4


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mamba", r"MambaForCausalLM is computed wrongly by the update: .* by up to \d"),
        ("bart", r"BartForCausalLM is computed wrongly by the update: .* by up to \d"),
        ("bert", "BertLMHeadModel is no causal language model"),
        ("lfm2", "Lfm2ForCausalLM cannot be computed by the sampler: its layers keep more of the past"),
        ("codegen", "CodeGenForCausalLM cannot be computed by the update: it attends by code of its own"),
    ],
)
def test_other_families_are_refused(family: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        check(small_model(family))


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "qwen2", "llama4_text"])
def test_a_sampler_that_forgets_windows_is_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = SlotCache.mask

    def causal(self: SlotCache, dtype: torch.dtype, sees: Sees) -> Tensor:
        return mask(self, dtype, lambda row, head, query, key: (key <= query) | (row < 0))

    monkeypatch.setattr(SlotCache, "mask", causal)
    with pytest.raises(UserError, match="is computed wrongly by the sampler"):
        check(small_model(family))


@pytest.mark.parametrize("family", ["granite", "gemma2", "cohere"])
def test_a_head_without_its_scale_is_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdsearch.training.selfcheck.head", lambda model: model.get_output_embeddings())
    with pytest.raises(UserError, match="is computed wrongly by the update"):
        check(small_model(family))


class SlightlyOff:
    """A sampler that tells one log-probability of a second turn a hundredth too high."""

    def __init__(self, model: nn.Module) -> None:
        self._own = TransformersSampler(model, TOKENIZER)
        self._turns = 0

    def converse(self, openings: Sequence[TurnRequest], respond: Respond) -> None:
        self._own.converse(openings, lambda turns: respond([self._seen(turn) for turn in turns]))

    def _seen(self, turn: SampledTurn) -> SampledTurn:
        self._turns += 1
        off = 0.01 if self._turns == 4 else 0.0
        return SampledTurn(turn.key, turn.token_ids, (turn.logprobs[0] + off, *turn.logprobs[1:]), turn.stop_reason)


def test_one_token_of_one_turn_is_noticed_and_the_tolerance_is_a_setting() -> None:
    model = small_model("llama")
    tokens = ordinary_tokens(TOKENIZER, model)
    with pytest.raises(UserError, match=r"by the sampler: .* by up to 0\.01 nats, .*model\.check_tolerance"):
        check_model(model, SlightlyOff(model), tokens, longest=500)
    check_model(model, SlightlyOff(model), tokens, longest=500, tolerance=0.02)


def test_the_texts_are_longer_than_the_window_where_a_conversation_can_be() -> None:
    config = small_model("mistral").config
    config.sliding_window = 100
    longest = max(write_conversations(range(9), num_trial_tokens(config, 500)), key=lambda c: len(c.context))
    assert len(longest.context) > 100
    assert num_trial_tokens(config, 60) == 60, "what no conversation reaches need not be checked"
    config.sliding_window = None
    config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 200}
    assert num_trial_tokens(config, 500) > 200


def test_the_head_is_the_model_s_own_with_adapters_in_parts_and_with_gradient() -> None:
    for family in ("gemma2", "granite", "cohere"):
        model = with_lora(small_model(family), 4, 8.0, "all-linear", seed=0)
        ids = list(range(20, 60))
        hidden_TD = causal_lm(model).get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state[0].detach()
        hidden_TD.requires_grad_()
        logits = torch.cat([head(model)(part) for part in hidden_TD.split(7)])
        torch.testing.assert_close(logits.log_softmax(-1), plain_logprobs(model, ids), rtol=0, atol=1e-5)
        logits.sum().backward()
        assert hidden_TD.grad is not None


def test_how_long_a_conversation_may_be() -> None:
    assert context_limit(small_model("llama")) == 512
    assert context_limit(small_model("gpt2")) == 512, "gpt2 calls it n_positions"
    assert context_limit(small_model("mamba")) is None
    assert num_trial_tokens(small_model("gpt_oss").config, 512) > WINDOW
