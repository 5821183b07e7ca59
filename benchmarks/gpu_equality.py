"""Part a: the whole step's loss and gradient on the device, in each layout, against the naive float64 objective."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from gpu_common import Bench, set_attention
from gpu_padded import padded_rows
from torch import Tensor, nn

from sdsearch.loss import accumulate_gradient, weigh
from sdsearch.policy import set_gradient_checkpointing
from tests.builders import ModelKind, make_groups, make_model, make_tokenizer
from tests.golden.cases import Case, gradients_of, make_case, make_settings

KINDS: tuple[ModelKind, ...] = ("llama", "qwen2", "qwen3", "mistral")  # mistral has a sliding window of 20 tokens
WAYS = ("split", "flex", "padded")
HEAD_WIDTH = 16  # the least that FlexAttention's kernel takes
# Largest error of the gradient by its norm, and of each loss by its size: fp32 rounds 6e-8, bf16 4e-3, over two layers.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
TUNINGS = ("full", "lora")


def run(bench: Bench) -> None:
    """Write a row a model, tuning, type, layout, and with layers computed again."""
    for kind in KINDS[:2] if bench.small else KINDS:
        for tuning in TUNINGS:
            case = make_device_case(kind, tuning)
            for dtype in BOUNDS:
                for way in WAYS:
                    for checkpointing in (False, True) if way == "split" else (False,):
                        measure(bench, case, kind, tuning, dtype, way, checkpointing)


def make_device_case(kind: ModelKind, tuning: str) -> Case:
    """Return a step of three groups, several trees a row, with every term of the loss in it."""
    settings = make_settings(model={"tuning": tuning})
    groups = make_groups(make_tokenizer(), num_groups=3)
    return make_case(settings, groups, kind, make=lambda kind, seed: make_model(kind, seed, head_width=HEAD_WIDTH))


def measure(
    bench: Bench, case: Case, kind: str, tuning: str, dtype: torch.dtype, way: str, checkpointing: bool
) -> None:
    """Write one row: errors of the three losses and of the gradient, and whether they are within the bound."""
    names = {
        "model": kind,
        "tuning": tuning,
        "type": str(dtype).removeprefix("torch."),
        "layout": way,
        "layers computed again": checkpointing,
    }
    with bench.case(seconds_needed=1.0, **names) as row:
        if "skip" in row:
            return
        naive, theirs = case.theirs()
        wanted = (naive.policy_loss, naive.kl, naive.sd_loss)
        policy = copy.deepcopy(case.policy).to(bench.device, dtype)
        with laid_out(policy, way, checkpointing):
            terms = accumulate_gradient(policy, weigh(case.scored, case.settings.grpo), case.settings, case.naive.alpha)
        found = (terms.policy_loss, terms.kl, terms.sd_loss)
        row["loss error"] = max(relative(float(own), float(other)) for own, other in zip(found, wanted, strict=True))
        row["gradient error"] = gradient_error(gradients_of(policy), theirs)
        row["bound"] = BOUNDS[dtype]
        # bfloat16 rounds each log-probability by up to 1e-2, which small divergences feel most: its loss is only told.
        row["ok"] = row["gradient error"] <= row["bound"] and (dtype != torch.float32 or row["loss error"] <= 1e-3)


@contextmanager
def laid_out(policy: nn.Module, way: str, checkpointing: bool) -> Iterator[None]:
    """Make the update use a layout, in training mode."""
    set_gradient_checkpointing(policy, checkpointing)
    policy.train()
    if way != "padded":
        set_attention(policy, "flex" if way == "flex" else "split")
    with padded_rows(policy) if way == "padded" else nullcontext():
        yield


def relative(own: float, other: float) -> float:
    return abs(own - other) / max(abs(other), 1e-12)


def gradient_error(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Return the norm of the gradients' difference by the oracle's norm; infinite where either is not finite."""
    difference: Any = sum(float((ours[name].cpu().double() - value).square().sum()) for name, value in theirs.items())
    error = math.sqrt(difference / sum(float(value.square().sum()) for value in theirs.values()))
    return error if math.isfinite(error) else math.inf
