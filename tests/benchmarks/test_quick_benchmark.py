"""benchmarks/quick.py: its ratios are those of a repeat, and its counts are those of the passes."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def in_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other as they do when one is run."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])


def test_ratios_are_taken_within_a_repeat_and_by_sampled_token() -> None:
    from quick import said

    def measured(sample: float, generate: float, teacher: float, update: float) -> object:
        seconds = {"sample": sample, "generate": generate, "teacher": teacher, "update": update}
        return seconds, {"sample": Counter(sampled=100), "generate": Counter(sampled=50)}

    # The machine was twice, then thrice as slow: the ratios are the same.
    repeats = [measured(2 * load, 2 * load, 1 * load, 3 * load) for load in (1.0, 2.0, 3.0)]
    assert said(repeats) == [
        "A token takes `generate` 2.00 times the sampler's time.",
        "The teacher stage takes 20.0 % of sampling and update together.",
    ]


def test_passes_rows_and_padded_tokens_are_counted_until_the_end() -> None:
    from quick import counted

    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8
    )
    model = LlamaForCausalLM(config)
    with counted(model) as counts:
        model(torch.zeros(3, 4, dtype=torch.long))
        model(input_ids=torch.zeros(1, 2, dtype=torch.long))
    model(torch.zeros(1, 1, dtype=torch.long))
    assert counts == {"passes": 2, "rows": 4, "tokens": 14}
