"""How much memory and disk a training takes, by estimate; needs neither torch nor the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

_SIZE_IN_NAME: Final = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)\s*b(?![a-z])", re.IGNORECASE)
CUDA_CONTEXT: Final = 1.5e9
SLOT_STEP: Final = 256
"""Tokens by which the sampler's keys and values grow (sdsearch.sampling.slots)."""
_FP32: Final = 4
_FP64: Final = 8


class ModelShape(NamedTuple):
    """What of a decoder's configuration its size follows from; widths in elements."""

    hidden: int
    layers: int
    intermediate: int
    kv_width: int  # keys of all key-value heads
    vocabulary: int
    tied: bool

    @property
    def layer_parameters(self) -> int:
        """Weights of one decoder layer of a Llama or Qwen2: attention, gated MLP, norms."""
        attention = 2 * self.hidden * (self.hidden + self.kv_width)
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def root_parameters(self) -> int:
        """Weights outside the layers: embeddings, output layer, last norm."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def num_parameters(self) -> int:
        """All weights."""
        return self.root_parameters + self.layers * self.layer_parameters

    def adapter_parameters(self, rank: int) -> int:
        """Weights of LoRA adapters on all linear layers."""
        h, m, kv = self.hidden, self.intermediate, self.kv_width
        return self.layers * rank * (2 * (h + h) + 2 * (h + kv) + 3 * (h + m))


# Qwen2.5 in its sizes: what a model that is not here is likely shaped like.
_KNOWN: Final = (
    ModelShape(896, 24, 4864, 128, 151_936, True),
    ModelShape(1536, 28, 8960, 256, 151_936, True),
    ModelShape(2048, 36, 11_008, 256, 151_936, True),
    ModelShape(3584, 28, 18_944, 512, 152_064, False),
    ModelShape(5120, 48, 13_824, 1024, 152_064, False),
    ModelShape(5120, 64, 27_648, 1024, 152_064, False),
    ModelShape(8192, 80, 29_568, 1024, 152_064, False),
)


def shape_of(config: Mapping[str, Any]) -> ModelShape | None:
    """Return the shape that a `config.json` tells, None when it is no decoder of the usual kind."""
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head = int(config.get("head_dim") or hidden // heads)
        return ModelShape(
            hidden=hidden,
            layers=int(config["num_hidden_layers"]),
            intermediate=int(config["intermediate_size"]),
            kv_width=int(config.get("num_key_value_heads") or heads) * head,
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def guessed_shape(name: str) -> ModelShape | None:
    """Return the shape of the Qwen2.5 of the size nearest to that in a model's name (such as 3B), if it has one."""
    sizes = _SIZE_IN_NAME.findall(name.rpartition("/")[2])
    if not sizes:
        return None
    wanted = float(sizes[0]) * 1e9
    return min(_KNOWN, key=lambda shape: abs(shape.num_parameters - wanted))


class TrainingNeeds(NamedTuple):
    """Bytes that a training holds on its device, or on each rank's; `gathered` are other ranks' shards, for a while."""

    weights: float
    gradients: float
    optimiser: float
    reference: float
    activations: float
    gathered: float = 0.0
    sampling: float = 0.0  # A batch that is generated with the same weights, between updates.

    @property
    def resident(self) -> float:
        """What stays between updates: it shares the device with sampling."""
        return self.weights + self.optimiser + self.reference + CUDA_CONTEXT

    @property
    def peak(self) -> float:
        """The most that an update takes, or a batch that is sampled: they take turns."""
        return self.resident + max(self.gradients + self.activations + self.gathered, self.sampling)


def training_needs(
    shape: ModelShape,
    *,
    bytes_each: int,
    lora_rank: int | None,
    has_reference: bool,
    measures_parts: bool,
    tokens: int,
    head_chunk: int,
    recomputes: bool,
    shards: int | None = None,
) -> TrainingNeeds:
    """Estimate the memory of an update with micro-batches of `tokens` tokens.

    shards: ranks that one copy of the weights is spread over, 1 where each has a whole one; None for one process
    without ranks. Ranks keep their shards in fp32, which are the masters, and gather for a pass what lies outside the
    layers and two layers, with their gradients, before these are spread again.

    P parameters of `bytes_each` b, of which T are trained (all, or the adapters, which are fp32):
    - weights b·P; gradients 4·T, for they are summed in fp32, twice that where both parts are measured; AdamW's moments
      8·T, and fp32 masters 4·T where b is 2, which take the gradients as they are; a frozen copy b·P when KL is
      measured and all weights are trained;
    - activations of every token and layer: 7 hidden widths, 2 of the keys and values and 4 of the MLP in b bytes, and
      the norms' inputs in fp32; with layers that are computed again only their inputs, and one layer's whole; and the
      logits of `head_chunk` positions, three times in fp32.
    Attention scores are never formed. Measured on none of these models: an estimate to about a quarter.
    """
    parameters = shape.num_parameters
    trained = parameters if lora_rank is None else shape.adapter_parameters(lora_rank)
    trained_bytes = bytes_each if lora_rank is None else _FP32
    per_token = bytes_each * (7 * shape.hidden + 2 * shape.kv_width + 4 * shape.intermediate) + 2 * _FP32 * shape.hidden
    in_ranks = shards is not None
    held_bytes = _FP32 if in_ranks else bytes_each
    masters = _FP32 if trained_bytes < _FP32 and not in_ranks else 0
    passing = 2 * shape.layer_parameters + shape.root_parameters if in_ranks else 0
    returned = shape.layer_parameters + shape.root_parameters if in_ranks and lora_rank is None else 0
    copies = shards or 1
    per_token = per_token * shape.layers if not recomputes else bytes_each * shape.hidden * shape.layers + per_token
    logits = 3 * _FP32 * min(head_chunk, tokens) * shape.vocabulary
    return TrainingNeeds(
        weights=held_bytes * parameters / copies,
        gradients=(2 if measures_parts else 1) * _FP32 * trained / copies,
        optimiser=(2 * _FP32 + masters) * trained / copies,
        reference=bytes_each * parameters / copies if has_reference and lora_rank is None else 0.0,
        activations=float(tokens * per_token + logits),
        gathered=float(bytes_each * passing + _FP32 * returned),
    )


def sampling_bytes(shape: ModelShape, *, bytes_each: int, conversations: int, longest: int, reply: int) -> float:
    """Estimate what transformers takes while it generates `conversations` at one time, at most `longest` tokens each.

    Keys and values of all of them as long as the longest, in steps of SLOT_STEP tokens; one of a layer's twice while it
    grows; the logits of each one's next token, three times in fp32 and twice in fp64; and for a quarter of them, which
    are handed a reply of `reply` tokens together, one layer's activations and who sees whom.
    """
    width = -(-longest // SLOT_STEP) * SLOT_STEP
    one = float(conversations * width * shape.kv_width * bytes_each)
    logits = (3 * _FP32 + 2 * _FP64) * conversations * shape.vocabulary
    replied = -(-conversations // 4) * reply
    passing = bytes_each * (4 * shape.hidden + 3 * shape.intermediate) + (bytes_each + 1) * longest
    return 2 * shape.layers * one + one + logits + replied * passing


def device_needs(needs: TrainingNeeds, engine_share: float, engine_sleeps: bool) -> float:
    """Return the bytes that a device must have when an engine that samples takes `engine_share` of it.

    An engine that sleeps while the trainer works only has to find room beside what stays.
    """
    if engine_sleeps:
        return max(needs.peak, needs.resident / (1 - engine_share)) if engine_share < 1 else float("inf")
    return needs.peak / (1 - engine_share) if engine_share < 1 else float("inf")


def checkpoint_bytes(needs: TrainingNeeds, lora_rank: int | None) -> float:
    """Return the size of one checkpoint: weights (or adapters, half as large as their moments) and optimiser."""
    return needs.optimiser + (needs.weights if lora_rank is None else needs.optimiser / 2)


def versions_held(keep: int, every: int, iterations: int) -> tuple[int, int]:
    """Return how many checkpoints a run has at most, and how many of them with their optimiser.

    They are the newest `keep`, the best on dev and the one being written; where the optimiser is stored with every n-th
    version alone, the newest that has it too. The best may have it, and the one being written counts as one of a row
    with the newest.
    """
    if every == 1:
        number = min(keep + 2, iterations + 1)
        return number, number
    number = min(keep + 3, iterations + 1)
    return number, min(number, -(-(keep + 1) // every) + 2)
