"""Rows of trees against one plain forward a sequence: hidden states, gradients, the passes that keep less."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from transformers.masking_utils import causal_mask_function

from sdsearch.model.attention import TREE_ATTENTIONS, flex_tree_attention
from sdsearch.model.batching import TokenBatch, TokenSequence
from sdsearch.model.policy import backbone, set_gradient_checkpointing, trainable_parameters, with_lora
from sdsearch.model.visibility import Tree, TreeLayout, TreeMask
from tests.support.builders import make_model

# Branches shorter and longer than their context, of one token, read at their very start alone, and after the last read.
SEQUENCES = [
    TokenSequence((1, 2, 3, 4, 5, 6, 7), tuple(range(20, 60)), (0, 1, 17, 39)),
    TokenSequence((1, 2, 3, 4, 5, 6, 7), (9,), (0,)),
    TokenSequence((1, 2, 3), (50, 51, 52, 53, 54), (1, 2)),
    TokenSequence((1, 2, 3, 4, 5, 6, 7), (30, 31, 32), (0, 2)),
    TokenSequence((8,), (40, 41, 42), (0, 1)),
    TokenSequence((1, 2, 3), tuple(range(60, 90)), (0, 29)),
]


def one_by_one(model: nn.Module, sequences: list[TokenSequence]) -> Tensor:
    """The hidden states (N, D) that predict the read tokens, by transformers' own attention, without sharing."""
    plain = backbone(model)
    plain.set_attn_implementation("sdpa")
    pieces = []
    for sequence in sequences:
        ids = torch.tensor([[*sequence.context_ids, *sequence.token_ids]])
        hidden = plain(input_ids=ids, use_cache=False).last_hidden_state[0]
        pieces += [hidden[len(sequence.context_ids) + offset - 1] for offset in sequence.reads]
    return torch.stack(pieces)


def gradients(model: nn.Module, hidden_ND: Tensor) -> list[Tensor]:
    weights = torch.randn(hidden_ND.shape, generator=torch.Generator().manual_seed(3), dtype=hidden_ND.dtype)
    (hidden_ND * weights).sum().backward()
    return [parameter.grad for parameter in trainable_parameters(model).values() if parameter.grad is not None]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize(("tuning", "checkpointing"), [("full", False), ("lora", True)])
def test_a_row_of_trees_is_its_sequences(kind: str, tuning: str, checkpointing: bool) -> None:
    model = make_model(kind, seed=1)
    if tuning == "lora":
        model = with_lora(model, 4, 8.0, "all-linear", seed=0)
        with torch.no_grad():
            for parameter in trainable_parameters(model).values():
                parameter.add_(0.1)
    model = model.double().train()
    twin = copy.deepcopy(model)
    set_gradient_checkpointing(model, checkpointing)
    hidden_ND = TokenBatch.of(SEQUENCES, torch.device("cpu")).hidden_at_reads(model)
    assert backbone(model).config._attn_implementation == TREE_ATTENTIONS["split"]
    expected_ND = one_by_one(twin, SEQUENCES)
    # RMSNorm works in fp32 even here.
    torch.testing.assert_close(hidden_ND, expected_ND, rtol=1e-6, atol=1e-6)
    ours, theirs = gradients(model, hidden_ND), gradients(twin, expected_ND)
    largest = max(float(gradient.abs().max()) for gradient in theirs)
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6 * largest)


def test_siblings_do_not_see_each_other() -> None:
    """Whatever stands in the others, whatever their order: each sequence's states stay."""
    model = make_model().double()
    changed = [TokenSequence(s.context_ids, tuple(t + 100 for t in s.token_ids), s.reads) for s in SEQUENCES]
    with torch.no_grad():
        own = [TokenBatch.of([s], torch.device("cpu")).hidden_at_reads(model) for s in SEQUENCES]
        for place, alone in enumerate(own):
            others = [*changed[:place], SEQUENCES[place], *changed[place + 1 :]]
            rows = TokenBatch.of(others, torch.device("cpu")).hidden_at_reads(model)
            reads = list(itertools.accumulate((len(s.reads) for s in SEQUENCES), initial=0))
            torch.testing.assert_close(rows[reads[place] : reads[place + 1]], alone, rtol=1e-9, atol=1e-9)


def test_checkpointing_keeps_less_and_changes_nothing() -> None:
    results = {}
    for checkpointing in (False, True):
        model = make_model().train()
        set_gradient_checkpointing(model, checkpointing)
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            hidden_ND = TokenBatch.of(SEQUENCES, torch.device("cpu")).hidden_at_reads(model)
        results[checkpointing] = (sum(t.numel() for t in kept), hidden_ND, gradients(model, hidden_ND))
    (much, plain, all_kept), (little, again, recomputed) = results[False], results[True]
    assert little < much / 5
    assert torch.equal(plain, again)
    for gradient, expected in zip(recomputed, all_kept, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
@torch.no_grad()
def test_flex_attention_is_split_attention(kind: str) -> None:
    """Values alone: FlexAttention has no backward pass on a CPU."""
    model = make_model(kind, seed=1).double()
    batch = TokenBatch.of(SEQUENCES, torch.device("cpu"))
    expected_ND = batch.hidden_at_reads(model)
    backbone(model).set_attn_implementation(TREE_ATTENTIONS["flex"])
    torch.testing.assert_close(batch.hidden_at_reads(model), expected_ND, rtol=1e-6, atol=1e-6)
    assert backbone(model).config._attn_implementation == TREE_ATTENTIONS["flex"]


def test_flex_attention_refuses_dropout() -> None:
    states = torch.zeros(1, 1, 2, 4)
    mask = TreeMask(TreeLayout((Tree(2, ()),)), causal_mask_function)
    with pytest.raises(ValueError, match=r"attention dropout is 0\.1"):
        flex_tree_attention(nn.Identity(), states, states, states, mask, dropout=0.1)
