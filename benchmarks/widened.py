"""The mini policy inside a Llama of 135 million parameters: a large model's cost, and it still follows the protocol.

    python benchmarks/widened.py FOLDER

A random model of that size never searches, so nothing of a rollout could be timed with it. Here the mini policy's
weights stand in a corner of zeros: its four layers are the first of thirty, the others add nothing to the stream, the
norms are scaled for the width, and the vocabulary's further tokens get a logit that is never drawn. It computes the
mini policy's function (to float rounding) at the cost of the whole. The sizes are SmolLM-135M's.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from flows.run.policy import model_folder
from sdsearch.model.policy import load_model, load_tokenizer

WIDTH, LAYERS, FEED_FORWARD, VOCABULARY, HEADS, KV_HEADS = 576, 30, 1536, 49_152, 18, 6
# One dimension of the stream tells the mini policy's tokens from the others; small, so that the norms hardly see it.
_MARK, _MARK_GAIN = 1e-3, 1e8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    model = save_widened(folder)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()) / 1e6:.0f} million parameters")


def save_widened(folder: Path) -> LlamaForCausalLM:
    """Write the model and its tokenizer to a folder, and return the model."""
    small = load_model(model_folder("mini"), "float32")
    model = widen(small)
    model.save_pretrained(folder)
    load_tokenizer(model_folder("mini")).save_pretrained(folder)
    return model


@torch.no_grad()
def widen(small: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return the large model that computes what `small` computes on `small`'s vocabulary."""
    old = small.config
    narrow = old.hidden_size
    model = LlamaForCausalLM(
        LlamaConfig(
            **{
                **old.to_dict(),
                "vocab_size": VOCABULARY,
                "hidden_size": WIDTH,
                "num_hidden_layers": LAYERS,
                "intermediate_size": FEED_FORWARD,
                "num_attention_heads": HEADS,
                "num_key_value_heads": KV_HEADS,
                "rms_norm_eps": old.rms_norm_eps * narrow / WIDTH,
            }
        )
    ).eval()
    for parameter in model.parameters():
        parameter.zero_()
    embedding, source = model.model.embed_tokens.weight, small.model.embed_tokens.weight
    embedding[: len(source), :narrow] = source
    embedding[:, narrow] = -_MARK
    embedding[: len(source), narrow] = _MARK
    scale = math.sqrt(narrow / WIDTH)
    for layer, former in zip(model.model.layers, small.model.layers, strict=False):
        _put_attention(layer.self_attn, former.self_attn, old.head_dim)
        for name in ("gate_proj", "up_proj", "down_proj"):
            _corner(getattr(layer.mlp, name).weight, getattr(former.mlp, name).weight)
        for name in ("input_layernorm", "post_attention_layernorm"):
            getattr(layer, name).weight[:narrow] = getattr(former, name).weight * scale
    model.model.norm.weight[:narrow] = small.model.norm.weight * scale
    model.model.norm.weight[narrow] = _MARK_GAIN
    return model


def _put_attention(wide: nn.Module, narrow: nn.Module, head_dim: int) -> None:
    """Give each old head a KV head of its own, and the first query head of those that share it."""
    for head in range(narrow.k_proj.out_features // head_dim):
        old = slice(head * head_dim, (head + 1) * head_dim)
        query_head = head * (HEADS // KV_HEADS)
        query = slice(query_head * head_dim, (query_head + 1) * head_dim)
        for name, new in (("q_proj", query), ("k_proj", old), ("v_proj", old)):
            _corner(getattr(wide, name).weight[new], getattr(narrow, name).weight[old])
            getattr(wide, name).bias[new] = getattr(narrow, name).bias[old]
        _corner(wide.o_proj.weight[:, query], narrow.o_proj.weight[:, old])
    wide.o_proj.bias[: narrow.o_proj.out_features] = narrow.o_proj.bias


def _corner(target: Tensor, source: Tensor) -> None:
    target[: source.shape[0], : source.shape[1]] = source


if __name__ == "__main__":
    main()
