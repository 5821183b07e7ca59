"""The mini policy's architecture, and weights to start from in which copying is already wired.

A small model learns to copy names only after a long plateau. The start skips it: layer 0 has heads that look
one and two tokens back, layer 1 has heads that look where the current token occurred before and pass on what
followed it there (an induction circuit; Elhage et al. 2021, Olsson et al. 2022). Training changes all of it.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

WIDTH, NUM_LAYERS, NUM_HEADS, FEED_FORWARD = 128, 4, 4, 384
HEAD_DIM = WIDTH // NUM_HEADS
ROPE_THETA = 500_000.0
_OWN = WIDTH - HEAD_DIM
_FAST_PAIRS = 6
_COPY_SHARPNESS = 1.5


class _Attention(Protocol):
    """A layer's attention: LlamaAttention as far as it is wired here."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear


def make_mini_model(vocabulary_size: int, pad_id: int, end_id: int, seed: int) -> LlamaForCausalLM:
    """Return a fresh Llama of about a million parameters, its first two layers wired for copying."""
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=WIDTH,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_HEADS,
        intermediate_size=FEED_FORWARD,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        attention_bias=True,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_id,
        pad_token_id=pad_id,
        initializer_range=0.02,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        _wire_copying(model, generator)
    return model


def _wire_copying(model: LlamaForCausalLM, generator: torch.Generator) -> None:
    """Reserve the last HEAD_DIM dimensions of the stream for the previous token, and wire both layers."""
    embedding = model.model.embed_tokens.weight
    embedding.normal_(std=0.05, generator=generator)
    embedding[:, _OWN:] = 0.0
    basis = torch.linalg.qr(torch.randn(_OWN, _OWN, generator=generator))[0]
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    for head, distance in enumerate((1, 2, 3)):
        _look_back(first, head, distance)
    written = torch.zeros(HEAD_DIM, WIDTH)
    written[:, :_OWN] = basis[:HEAD_DIM]
    _pass_on(first, head=0, read=written, write=torch.eye(WIDTH)[:, _OWN:], gain=0.05)
    recalled = torch.zeros(HEAD_DIM, WIDTH)
    recalled[:, _OWN:] = torch.eye(HEAD_DIM)
    for head in range(3):
        _match(second, head, read_query=written, read_key=recalled, sharpness=_COPY_SHARPNESS)
        carried = torch.zeros(HEAD_DIM, WIDTH)
        carried[:, :_OWN] = basis[head * HEAD_DIM : (head + 1) * HEAD_DIM]
        _pass_on(second, head, read=carried, write=carried.T, gain=0.1)


def _rows(head: int) -> slice:
    return slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)


def _look_back(attention: _Attention, head: int, distance: int, strength: float = 6.0) -> None:
    """Bias a head towards the token `distance` back, through the fastest rotating pairs of RoPE."""
    query, key = torch.zeros(HEAD_DIM), torch.zeros(HEAD_DIM)
    half = HEAD_DIM // 2
    for pair in range(_FAST_PAIRS):
        angle = distance * ROPE_THETA ** (-pair / half)
        key[pair] = strength
        query[pair], query[pair + half] = strength * math.cos(angle), -strength * math.sin(angle)
    attention.q_proj.bias[_rows(head)] = query
    attention.k_proj.bias[_rows(head)] = key


def _match(attention: _Attention, head: int, read_query: Tensor, read_key: Tensor, sharpness: float) -> None:
    """Make a head attend where two reads of the stream agree, in the pairs that RoPE hardly turns."""
    slow = [pair + shift for shift in (0, HEAD_DIM // 2) for pair in range(_FAST_PAIRS, HEAD_DIM // 2)]
    for weight, read in ((attention.q_proj.weight, read_query), (attention.k_proj.weight, read_key)):
        weight[_rows(head)] = 0.0
        weight[[head * HEAD_DIM + dim for dim in slow]] = sharpness * read[: len(slow)]


def _pass_on(attention: _Attention, head: int, read: Tensor, write: Tensor, gain: float) -> None:
    attention.v_proj.weight[_rows(head)] = read
    attention.o_proj.weight[:, _rows(head)] = gain * write
