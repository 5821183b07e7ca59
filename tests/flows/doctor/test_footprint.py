"""Sizes of models and of what their training holds, against sizes that are published or counted."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from flows.doctor.footprint import (
    SLOT_STEP,
    checkpoint_bytes,
    device_needs,
    guessed_shape,
    sampling_bytes,
    shape_of,
    training_needs,
    versions_held,
)
from flows.doctor.hub import model_files
from sdsearch.sampling import slots
from tests.support.builders import make_model


@pytest.mark.parametrize(
    ("name", "published"), [("Qwen/Qwen2.5-3B-Instruct", 3.09e9), ("Qwen/Qwen2.5-7B", 7.61e9), ("a/b-0.5b-x", 0.49e9)]
)
def test_a_model_that_is_not_here_has_the_size_of_its_name(name: str, published: float) -> None:
    shape = guessed_shape(name)
    assert shape is not None
    assert shape.num_parameters == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("name", ["mini", "llama-base", "run3beta"])
def test_a_name_without_a_size_is_not_guessed(name: str) -> None:
    assert guessed_shape(name) is None


def test_parameters_are_those_of_the_model() -> None:
    for kind, biases in (("llama", 0), ("qwen2", 2 * (32 + 16 + 16))):
        model = make_model(kind)  # type: ignore[arg-type]
        shape = shape_of(model.config.to_dict())
        assert shape is not None
        assert shape.num_parameters + biases == sum(weight.numel() for weight in model.parameters())
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
        assert shape.adapter_parameters(4) == trained


def test_the_shipped_policy_is_sized_by_its_own_configuration() -> None:
    files = model_files("mini")
    assert files.config is not None
    assert (shape := shape_of(files.config)) is not None
    assert shape.num_parameters * 4 == pytest.approx(files.weights_bytes, rel=0.01)
    assert shape_of({"hidden_size": "x"}) is None
    assert shape_of(json.loads("{}")) is None


def test_each_part_counts_where_it_is_held() -> None:
    shape = guessed_shape("3B")
    assert shape is not None
    parameters = shape.num_parameters

    def needs(
        bytes_each: int = 2,
        lora_rank: int | None = None,
        has_reference: bool = True,
        tokens: int = 4096,
        **others: bool,
    ):
        return training_needs(
            shape,
            bytes_each=bytes_each,
            lora_rank=lora_rank,
            has_reference=has_reference,
            measures_parts=others.get("measures_parts", False),
            tokens=tokens,
            head_chunk=2048,
            recomputes=others.get("recomputes", False),
        )

    full = needs()
    assert full.optimiser == 12 * parameters, "moments and fp32 masters"
    assert needs(bytes_each=4).optimiser == 8 * parameters, "fp32 weights need no masters"
    assert full.peak - needs(has_reference=False).peak == 2 * parameters
    lora = needs(lora_rank=16)
    assert (lora.reference, lora.weights) == (0, full.weights)
    assert lora.peak < full.peak / 2
    assert full.gradients == needs(bytes_each=4).gradients == 4 * parameters, "summed in fp32 under any weights"
    assert needs(measures_parts=True).gradients == 8 * parameters
    assert checkpoint_bytes(full, None) == 14 * parameters
    assert checkpoint_bytes(lora, 16) == 12 * shape.adapter_parameters(16)
    assert needs(recomputes=True).activations < full.activations / 4
    assert needs(tokens=8192).activations > 1.8 * full.activations
    assert device_needs(full, 0.0, False) == full.peak
    assert device_needs(full, 0.5, False) == 2 * full.peak
    assert device_needs(full, 0.5, True) == max(full.peak, 2 * full.resident)
    assert device_needs(full, 1.0, True) == float("inf")


@pytest.mark.parametrize(
    ("keep", "every", "iterations", "held"),
    [(3, 1, 200, (5, 5)), (3, 1, 1, (2, 2)), (3, 10, 200, (6, 3)), (3, 2, 200, (6, 4)), (3, 10, 1, (2, 2))],
)
def test_versions_without_their_optimiser_take_less_disk(
    keep: int, every: int, iterations: int, held: tuple[int, int]
) -> None:
    assert versions_held(keep, every, iterations) == held


def test_ranks_hold_a_part_of_a_copy_and_gather_layers_for_a_while() -> None:
    shape = guessed_shape("3B")
    assert shape is not None
    parameters = shape.num_parameters

    def needs(shards: int | None, lora_rank: int | None = None):
        return training_needs(
            shape,
            bytes_each=2,
            lora_rank=lora_rank,
            has_reference=True,
            measures_parts=False,
            tokens=4096,
            head_chunk=2048,
            recomputes=True,
            shards=shards,
        )

    alone, eight, whole = needs(None), needs(8), needs(1)
    assert alone.gathered == 0
    assert eight.weights == 4 * parameters / 8, "shards are fp32 and the masters themselves"
    assert eight.optimiser == 8 * parameters / 8
    assert eight.gradients == 4 * parameters / 8
    assert eight.reference == 2 * parameters / 8
    assert eight.activations == alone.activations
    assert (
        eight.gathered
        == whole.gathered
        == 2 * (2 * shape.layer_parameters + shape.root_parameters)
        + 4 * (shape.layer_parameters + shape.root_parameters)
    )
    # A weight in bfloat16 beside its fp32 master takes two bytes more than a shard that is both.
    assert whole.weights + whole.optimiser == alone.weights + alone.optimiser - 2 * parameters
    assert eight.peak < alone.peak / 2 < whole.peak
    assert needs(8, lora_rank=16).gathered < eight.gathered, "frozen weights have no gradients to sum"


def test_the_cache_of_a_batch_is_that_of_the_sampler() -> None:
    """Its slots, filled as a batch does, against the estimate without logits and replies."""
    assert SLOT_STEP == slots._GROWTH
    model = make_model("llama")
    shape = shape_of(model.config.to_dict())
    assert shape is not None
    cache = slots.SlotCache(12, torch.device("cpu"))
    heads = model.config.num_key_value_heads
    states = torch.zeros(12, heads, 300, shape.kv_width // heads)
    cache.address(12, 300)
    for layer in range(shape.layers):
        cache.update(states, states, layer)
    held = sum(tensor.numel() * tensor.element_size() for tensor in (*cache._keys, *cache._values))
    bare = shape._replace(vocabulary=0)
    estimated = sampling_bytes(bare, bytes_each=4, conversations=12, longest=300, reply=0)
    assert estimated == held * (1 + 1 / (2 * shape.layers)), "and one of a layer's while it grows"
