"""Supervised training on demonstrations: conversations as tokens with a weight a token, and one optimiser step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from schemas.records.hindsight import HindsightAttempt
from schemas.records.passage import SearchHit
from schemas.records.run_inputs import PromptFrame
from sdsearch.credit.block_text import encode_block
from sdsearch.model.policy import backbone, head
from sdsearch.protocol.ports import ActionProtocol
from sdsearch.protocol.prompting import render_documents, render_prompt
from sdsearch.protocol.tokens import encode

# B sequences, T tokens, N tokens with a weight, V vocabulary, D width.


class Demonstration(NamedTuple):
    """Token ids and each one's weight in the loss, aligned."""

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]


class Batch(NamedTuple):
    """Right-padded demonstrations; padding has weight 0 and comes last, so causal attention never reads it."""

    ids_BT: Tensor
    weights_BT: Tensor


class Layout(NamedTuple):
    """How a conversation is laid out as tokens: as sampling lays it out."""

    tokenizer: PreTrainedTokenizerBase
    protocol: ActionProtocol
    frame: PromptFrame
    max_observation_tokens: int
    max_block_tokens: int


def demonstrate(
    layout: Layout,
    question: str,
    attempts: Sequence[HindsightAttempt] | None,
    turns: Iterable[tuple[str, Sequence[SearchHit] | None]],
    weigh_reply: Callable[[int], Sequence[float]] = lambda num_tokens: [0.0] * num_tokens,
) -> Demonstration:
    """Return a conversation as tokens: head, block (None: without), question, then turn by turn.

    A turn is the policy's text, all of it weighed 1, and what its search found, None where nothing replies.
    `weigh_reply` gives the weights of a reply's tokens.
    """
    tokenizer = layout.tokenizer
    prompt = render_prompt(tokenizer, question, layout.frame, layout.protocol)
    room, tags = layout.max_block_tokens, layout.protocol.tags
    block = [] if attempts is None else encode_block(tokenizer, attempts, room, tags=tags).token_ids
    token_ids = [*prompt.head, *block, *prompt.body]
    weights = [0.0] * len(token_ids)
    for text, hits in turns:
        written = encode(tokenizer, text)
        token_ids += written
        weights += [1.0] * len(written)
        if hits is not None:
            last = token_ids[-1] if written else None
            reply = render_documents(tokenizer, hits, layout.max_observation_tokens, layout.protocol, last).token_ids
            token_ids += reply
            weights += weigh_reply(len(reply))
    return Demonstration(tuple(token_ids), tuple(weights))


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


def weighted_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the weighted mean cross-entropy, nats; logits are made only where a token has a weight."""
    hidden_BTD = backbone(model)(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
    weights_BT = batch.weights_BT[:, 1:]
    chosen_BT = weights_BT > 0
    logits_NV = head(model)(hidden_BTD[:, :-1][chosen_BT])
    losses_N = functional.cross_entropy(logits_NV.float(), batch.ids_BT[:, 1:][chosen_BT], reduction="none")
    weights_N = weights_BT[chosen_BT]
    return (losses_N * weights_N).sum() / weights_N.sum()


def learning_rate_at(step: int, num_steps: int, peak: float, num_warmup: int = 100) -> float:
    """Return the rate of a step (from 0): it warms up, stays, and in the second half falls along a cosine to 2 %."""
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    done = max(0.0, step / num_steps - 0.5) * 2
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def take_step(
    model: nn.Module, optimiser: Optimizer, batch: Batch, rate: float, dropout_seed: int | None = None
) -> float:
    """Take one step on a batch with the gradient's norm clipped at 1; return the loss before it.

    dropout_seed: makes a model's own dropout depend on nothing else.
    """
    if dropout_seed is not None:
        torch.manual_seed(dropout_seed % 2**63)
    for group in optimiser.param_groups:
        group["lr"] = rate
    loss = weighted_loss(model, batch)
    loss.backward()
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimiser.step()
    model.zero_grad(set_to_none=True)
    optimiser.zero_grad(set_to_none=True)
    return float(loss.detach())
