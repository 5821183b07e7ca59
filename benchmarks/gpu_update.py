"""Part b: the update at the sizes of Qwen2.5, bf16 with fp32 masters: tokens/s, share of the peak, memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from gpu_common import GIGA, Bench, Shape, make_qwen, measure_peaks, set_attention
from gpu_padded import padded_rows
from gpu_steps import drawn_rollouts, settings_for, step_case, step_flops, useful_tokens
from torch import nn

from flows.doctor.footprint import CUDA_CONTEXT, ModelShape, training_needs
from schemas.settings.root import Settings
from sdsearch.model.policy import set_gradient_checkpointing
from sdsearch.training.loss import ScoredRollout, StepMember, accumulate_gradient, weigh
from sdsearch.training.loss_settings import LossSettings
from sdsearch.training.optimiser import make_optimiser

WAYS = ("split", "flex", "padded")
REPEATS = 3
SECONDS_A_SIZE = {"small": 0.0, "0.5B": 15.0, "1.5B": 25.0, "3B": 40.0}


def run(bench: Bench) -> None:
    """Write the ceilings, then a row a size and layout, then the largest micro-batch of the largest size."""
    peaks = measure_peaks(bench)
    bench.put(size="ceilings", **{name: round(value, 2) for name, value in peaks.items()})
    case = step_case(bench)
    for shape in bench.shapes:
        scored = drawn_rollouts(case, shape.vocabulary)
        for way in WAYS:
            with bench.case(SECONDS_A_SIZE[shape.name], size=shape.name, layout=way) as row:
                if "skip" not in row:
                    row.update(measure(bench, shape, way, scored, peaks["matmul_tflops"]))
    largest_microbatch(bench, bench.shapes[-1])


def measure(bench: Bench, shape: Shape, way: str, scored: Sequence[ScoredRollout], peak: float) -> dict[str, Any]:
    """Return a row's figures: the gradient's speed, the optimiser's step, and the memory against the estimate."""
    settings = settings_for(bench)
    sequences = [item.rollout.sequence for item in scored]
    with policy_of(bench, shape, way, settings) as (model, optimiser):
        members = weigh(scored, settings.grpo)
        work = gradient_of(model, members, settings)
        seconds, spread = bench.time(work, REPEATS)
        measured = bench.peak_of(lambda: (work(), optimiser.step()))
        step_s, _ = bench.time(optimiser.step, REPEATS)
    return {
        "gradient s": seconds,
        "spread s": spread,
        "useful tokens/s": useful_tokens(sequences) / seconds,
        "share of matmul peak": step_flops(shape, sequences) / seconds / 1e12 / peak,
        "optimiser s": step_s,
        "peak GB": measured / GIGA,
        "estimate GB": estimate_bytes(shape, settings) / GIGA if bench.is_cuda else None,
    }


@contextmanager
def policy_of(bench: Bench, shape: Shape, way: str, settings: Settings) -> Iterator[tuple[nn.Module, Any]]:
    """Give a policy in training mode in a layout, with its optimiser and a frozen reference beside it."""
    model = make_qwen(shape, bench.device, torch.bfloat16, "split")
    reference = make_qwen(shape, bench.device, torch.bfloat16, "split").requires_grad_(False)
    set_gradient_checkpointing(model.train(), settings.update.gradient_checkpointing)
    optimiser = make_optimiser(model, settings.update)
    if way == "padded":
        with padded_rows(model):
            yield model, optimiser
    else:
        set_attention(model, "flex" if way == "flex" else "split")
        yield model, optimiser
    del reference


def gradient_of(model: nn.Module, members: Sequence[StepMember], settings: Settings, alpha: float = 0.0) -> Any:
    """Return the work of one step's gradient, from none to the whole."""

    def work() -> None:
        model.zero_grad(set_to_none=True)
        accumulate_gradient(model, members, LossSettings.of(settings), alpha)

    return work


def estimate_bytes(shape: Shape, settings: Settings) -> float:
    """Return what `sdsearch doctor` says that the update takes, without the driver's own memory."""
    kv = shape.hidden // shape.heads * shape.kv_heads
    model = ModelShape(shape.hidden, shape.layers, shape.intermediate, kv, shape.vocabulary, True)
    needs = training_needs(
        model,
        bytes_each=2,
        lora_rank=None,
        has_reference=True,
        measures_parts=False,
        tokens=settings.update.max_tokens_per_microbatch,
        head_chunk=settings.update.head_chunk,
        recomputes=settings.update.gradient_checkpointing,
    )
    return needs.peak - CUDA_CONTEXT


def largest_microbatch(bench: Bench, shape: Shape) -> None:
    """Double the micro-batch from the settings' own until it does not fit; a row each."""
    budget = settings_for(bench).update.max_tokens_per_microbatch
    for doubling in range(2 if bench.small else 5):
        tokens = budget * 2**doubling
        settings = settings_for(bench, update={"max_tokens_per_microbatch": tokens})
        case = step_case(bench)
        groups = -(-tokens // sum(s.num_tokens for s in _one_group(case, shape))) + 1
        scored = drawn_rollouts(replace(case, num_groups=groups), shape.vocabulary)
        with bench.case(SECONDS_A_SIZE[shape.name] / 2, size=shape.name, layout=f"micro-batch of {tokens}") as row:
            if "skip" in row:
                return
            with policy_of(bench, shape, "split", settings) as (model, _):
                work = gradient_of(model, weigh(scored, settings.grpo), settings)
                row["peak GB"] = bench.peak_of(work) / GIGA
                row["estimate GB"] = estimate_bytes(shape, settings) / GIGA if bench.is_cuda else None
        if "error" in row:
            return


def _one_group(case: Any, shape: Shape) -> list[Any]:
    return [item.rollout.sequence for item in drawn_rollouts(replace(case, num_groups=1), shape.vocabulary)]
