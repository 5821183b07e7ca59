"""Supervised training of the mini policy on demonstrations: a fixed number of steps, seeded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from transformers import LlamaForCausalLM

from sdsearch.training.supervised import Batch, learning_rate_at, take_step


class PretrainProgress(NamedTuple):
    """Where the training stands after a step; the loss is a weighted mean over tokens, nats."""

    step: int
    num_steps: int
    loss: float


def pretrain(
    model: LlamaForCausalLM, batches: Iterable[Batch], num_steps: int, peak_rate: float
) -> Iterator[PretrainProgress]:
    """Train in place and yield after every step; stops after `num_steps`, asserts that the batches suffice."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    model.train()
    step = 0
    for step, batch in enumerate(batches, 1):
        loss = take_step(model, optimiser, batch, learning_rate_at(step - 1, num_steps, peak_rate))
        yield PretrainProgress(step, num_steps, loss)
        if step == num_steps:
            break
    assert step == num_steps, f"{num_steps} steps were asked for, the batches ended after {step}"
    model.eval()
