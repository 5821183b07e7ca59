"""What the parts of benchmarks/gpu.py share: the sizes, the clock, the memory, and the file that every row goes to."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM
from update_measures import forget_peak_memory, peak_memory

from sdsearch.model.attention import TREE_ATTENTIONS
from sdsearch.model.policy import backbone

Attention = Literal["split", "flex"]
GIGA = 1e9


@dataclass(frozen=True)
class Shape:
    """A decoder of Qwen2.5's form; its weights are drawn."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 151_936

    def config(self) -> Qwen2Config:
        """The model's configuration; no token ends a turn."""
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=32_768,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )


SHAPES = (
    Shape("0.5B", 896, 4864, 24, 14, 2),
    Shape("1.5B", 1536, 8960, 28, 12, 2),
    Shape("3B", 2048, 11_008, 36, 16, 2),
)
SMALL_SHAPES = (Shape("small", 64, 128, 2, 4, 2, 512),)


class Sink:
    """Writes each row as it is made: a run that is cut off keeps what it had."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = file.open("a", encoding="utf-8")

    def put(self, part: str, row: Mapping[str, Any]) -> None:
        """Print a row and make it durable."""
        line = json.dumps({"part": part, **row})
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        print(line, flush=True)


@dataclass(frozen=True)
class Bench:
    """What a part is told: where it runs, how large, and until when."""

    device: torch.device
    small: bool
    sink: Sink
    part: str
    deadline: float  # of time.monotonic

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return SMALL_SHAPES if self.small else SHAPES

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def put(self, **row: Any) -> None:
        """Write one row of this part's table."""
        self.sink.put(self.part, row)

    @contextmanager
    def case(self, seconds_needed: float = 0.0, **names: Any) -> Iterator[dict[str, Any]]:
        """Write the row that is filled inside; what fails or is not reached is written too, and the next one follows.

        The body does not run where the time is up: it asks `row["skip"]` first.
        """
        row: dict[str, Any] = dict(names)
        if self.seconds_left < seconds_needed:
            row["skip"] = f"not reached, {max(0.0, self.seconds_left):.0f} s were left"
        try:
            yield row
        except Exception as error:  # A part that fails on this card is a finding, and must not cost the others.
            row["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
        finally:
            self.put(**row)
            free(self.device)

    def time(self, work: Callable[[], object], repeats: int) -> tuple[float, float]:
        """Return median and spread (largest less smallest) of the seconds; the first pass warms up."""
        work()
        seconds = []
        for _ in range(repeats):
            wait(self.device)
            began = time.perf_counter()
            work()
            wait(self.device)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds), max(seconds) - min(seconds)

    def peak_of(self, work: Callable[[], object]) -> float:
        """Return the most memory held while the work is done, bytes: the card's, or this process's."""
        free(self.device)
        if not self.is_cuda:
            forget_peak_memory()
            work()
            return float(peak_memory())
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        wait(self.device)
        return float(torch.cuda.max_memory_allocated(self.device))


def described(device: torch.device) -> str:
    """Return the card in words."""
    if device.type != "cuda":
        return "no card"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / GIGA:.0f} GB, CUDA {torch.version.cuda}"


def wait(device: torch.device) -> None:
    """Wait until the card has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Give the allocator's free blocks back."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def make_qwen(shape: Shape, device: torch.device, dtype: torch.dtype, attention: Attention) -> nn.Module:
    """Return a policy of a shape with drawn weights, made on the device."""
    torch.manual_seed(0)
    with device:
        model = Qwen2ForCausalLM._from_config(shape.config(), dtype=dtype)
    set_attention(model, attention)
    return model.eval()


def set_attention(model: nn.Module, attention: Attention | Literal["sdpa"]) -> None:
    """Make the backbone attend by one of the program's kinds, or by transformers' own."""
    backbone(model).set_attn_implementation(TREE_ATTENTIONS.get(attention, attention))


def measure_peaks(bench: Bench) -> dict[str, float]:
    """Return the device's own ceilings: a large bf16 (fp32 on a CPU) product, TFLOP/s, and a copy, GB/s."""
    size = 512 if bench.small else 8192
    dtype = torch.bfloat16 if bench.is_cuda else torch.float32
    left, right = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
    product_s, _ = bench.time(lambda: left @ right, 10)
    source = torch.empty(size * size * (8 if bench.is_cuda else 1), device=bench.device)
    copy_s, _ = bench.time(source.clone, 10)
    return {"matmul_tflops": 2 * size**3 / product_s / 1e12, "copy_gb_s": 2 * source.numel() * 4 / copy_s / GIGA}
