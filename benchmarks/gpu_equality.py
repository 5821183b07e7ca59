"""Part a: the whole step's loss and gradient on the device, in each layout, against the naive float64 objective."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from gpu_common import Bench, set_attention
from gpu_padded import padded_rows
from torch import Tensor, nn

from sdsearch.model.policy import set_gradient_checkpointing
from sdsearch.training.loss import accumulate_gradient, weigh
from sdsearch.training.loss_settings import LossSettings
from tests.golden.cases import Case, gradients_of, make_case, make_settings
from tests.support.builders import ModelKind, make_groups, make_model, make_tokenizer

KINDS: tuple[ModelKind, ...] = ("llama", "qwen2", "qwen3", "mistral")  # mistral has a sliding window of 20 tokens
WAYS = ("padded", "split", "flex")
HEAD_WIDTH = 16  # the least that FlexAttention's kernel takes
DTYPES = (torch.float32, torch.bfloat16)
# Largest error of the gradient by its norm, and of each loss by its size.
BOUND = 1e-4
# In bfloat16 the forward pass's own rounding is far larger: a layout may be so much worse than the plain padded one.
TIMES_PADDED = 1.5
TUNINGS = ("full", "lora")


class Oracle(NamedTuple):
    """What the float64 objective says of a step."""

    losses: tuple[float, ...]
    gradients: Mapping[str, Tensor]


def run(bench: Bench) -> None:
    """Write a row a model, tuning, type, layout, and with layers computed again."""
    for kind in KINDS[:2] if bench.small else KINDS:
        for tuning in TUNINGS:
            case = make_device_case(kind, tuning)
            for dtype in DTYPES:
                oracle = oracle_of(case, dtype)
                bound = BOUND
                for way in WAYS:
                    for checkpointing in (False, True) if way == "split" else (False,):
                        names = {"model": kind, "tuning": tuning, "type": str(dtype).removeprefix("torch.")}
                        names |= {"layout": way, "layers computed again": checkpointing}
                        error = measure(bench, case, oracle, dtype, bound, names)
                        if way == "padded" and dtype == torch.bfloat16:
                            bound = TIMES_PADDED * error


def make_device_case(kind: ModelKind, tuning: str) -> Case:
    """Return a step of three groups, several trees a row, with every term of the loss in it."""
    settings = make_settings(model={"tuning": tuning})
    groups = make_groups(make_tokenizer(), num_groups=3)
    return make_case(settings, groups, kind, make=lambda kind, seed: make_model(kind, seed, head_width=HEAD_WIDTH))


def oracle_of(case: Case, dtype: torch.dtype) -> Oracle:
    """Return the naive float64 objective's losses and gradient at the case's weights, rounded to a type."""
    rounded = copy.deepcopy(case.policy).to(dtype).double()
    rounded.zero_grad()
    loss = case.naive.loss(rounded)
    loss.total.backward()
    return Oracle(tuple(map(float, (loss.policy_loss, loss.kl, loss.sd_loss))), gradients_of(rounded))


def measure(
    bench: Bench, case: Case, oracle: Oracle, dtype: torch.dtype, bound: float, names: Mapping[str, Any]
) -> float:
    """Write one row and return the gradient's error; the plain layout in bfloat16 is what others are bound by."""
    with bench.case(seconds_needed=1.0, **names) as row:
        if "skip" in row:
            return math.inf
        policy = copy.deepcopy(case.policy).to(bench.device, dtype)
        with laid_out(policy, row["layout"], row["layers computed again"]):
            members = weigh(case.scored, case.settings.grpo)
            terms = accumulate_gradient(policy, members, LossSettings.of(case.settings), case.naive.alpha)
        found = (terms.policy_loss, terms.kl, terms.sd_loss)
        row["loss error"] = max(relative(float(own), other) for own, other in zip(found, oracle.losses, strict=True))
        row["gradient error"] = gradient_error(gradients_of(policy), oracle.gradients)
        if dtype == torch.bfloat16 and row["layout"] == "padded":
            return float(row["gradient error"])
        row["bound"] = bound
        row["ok"] = row["gradient error"] <= bound and (dtype == torch.bfloat16 or row["loss error"] <= bound)
    return float(row.get("gradient error", math.inf))


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
