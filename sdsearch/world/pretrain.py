"""Supervised training of the mini policy on demonstrations: a fixed number of steps, seeded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from sdsearch.world.demonstrations import Demonstration

# B sequences, T tokens, N tokens with a weight, V vocabulary, D width.


class Batch(NamedTuple):
    """Right-padded demonstrations; padding has weight 0 and comes last, so causal attention never reads it."""

    ids_BT: Tensor
    weights_BT: Tensor


class PretrainProgress(NamedTuple):
    """Where the training stands after a step; the loss is a weighted mean over tokens, nats."""

    step: int
    num_steps: int
    loss: float


def bucket(demonstrations: Sequence[Demonstration], tokens_per_batch: int, random: Random) -> list[Batch]:
    """Put demonstrations of like length together, about `tokens_per_batch` tokens a batch, in random order."""
    ordered = sorted(demonstrations, key=lambda demonstration: len(demonstration.token_ids))
    batches: list[Batch] = []
    rows: list[Demonstration] = []
    for demonstration in ordered:
        if rows and len(demonstration.token_ids) * (len(rows) + 1) > tokens_per_batch:
            batches.append(_pad(rows))
            rows = []
        rows.append(demonstration)
    if rows:
        batches.append(_pad(rows))
    random.shuffle(batches)
    return batches


def _pad(rows: Sequence[Demonstration]) -> Batch:
    width = max(len(row.token_ids) for row in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    weights_BT = torch.zeros(len(rows), width)
    for number, row in enumerate(rows):
        ids_BT[number, : len(row.token_ids)] = torch.tensor(row.token_ids)
        weights_BT[number, : len(row.weights)] = torch.tensor(row.weights)
    return Batch(ids_BT, weights_BT)


def weighted_loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Return the weighted mean cross-entropy; logits are made only where a token has a weight."""
    hidden_BTD = model.model(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
    weights_BT = batch.weights_BT[:, 1:]
    chosen_BT = weights_BT > 0
    logits_NV = model.lm_head(hidden_BTD[:, :-1][chosen_BT])
    losses_N = functional.cross_entropy(logits_NV, batch.ids_BT[:, 1:][chosen_BT], reduction="none")
    weights_N = weights_BT[chosen_BT]
    return (losses_N * weights_N).sum() / weights_N.sum()


def learning_rate_at(step: int, num_steps: int, peak: float, num_warmup: int = 100) -> float:
    """Return a rate that warms up, stays at its peak, and falls to 2 % of it along a cosine in the second half."""
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    done = max(0.0, step / num_steps - 0.5) * 2
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def pretrain(
    model: LlamaForCausalLM, batches: Iterable[Batch], num_steps: int, peak_rate: float
) -> Iterator[PretrainProgress]:
    """Train in place and yield after every step; stops after `num_steps`, asserts that the batches suffice."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    model.train()
    step = 0
    for step, batch in enumerate(batches, 1):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(step - 1, num_steps, peak_rate)
        loss = weighted_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        yield PretrainProgress(step, num_steps, float(loss.detach()))
        if step == num_steps:
            break
    assert step == num_steps, f"{num_steps} steps were asked for, the batches ended after {step}"
    model.eval()
