"""`sdsearch index estimate`: what each kind of index of a corpus would cost, and which one fits."""

from __future__ import annotations

import time
from typing import Final

from rich.console import Console

from flows.console.terminal import format_seconds, make_table, print_line
from schemas.commands import set_option
from sdsearch.retrieval.costs import Cost, estimate_costs, measure_speeds

# Recall@3 of exact search on a million 768-dimensional vectors made from text, one list of 32 looked through:
# benchmarks/index_recall.py, whose docstring says how. Kinds that were not measured there have none.
MEASURED_RECALL: Final = {
    "flat": 1.0,
    "ivf_sq, 8 bits": 0.955,
    "ivf_sq, 6 bits": 0.913,
    "ivf_sq, 6 bits, refine disk": 0.967,
    "ivf_sq, 4 bits, refine disk": 0.967,
    "ivf_pq, refine disk": 0.958,
}
# Of indexes whose recall differs by less, the smallest one is recommended.
_SAME_RECALL: Final = 0.005


def print_costs(num_passages: int, num_dimensions: int, ram_gb: float | None, console: Console) -> None:
    """Measure for some seconds, then print a table, and the kind that fits the memory and finds most."""
    started = time.perf_counter()
    costs = estimate_costs(num_passages, num_dimensions, measure_speeds(num_dimensions))
    seconds = time.perf_counter() - started
    print_line(
        console,
        f"{num_passages:,} passages, {num_dimensions} dimensions. Memory and disk are arithmetic. Times are of one "
        f"core, extrapolated from {seconds:.0f} s of measurements here on a few thousand vectors: good for the order "
        "of magnitude; divide by the cores that work. Recall was measured on a million vectors of text "
        "(benchmarks/index_recall.py), not here.",
    )
    headings = ["index", "bytes per vector", "memory GB", "disk GB", "build", "per query", "recall@3"]
    console.print(make_table(headings, [_cells(cost) for cost in costs]))
    if ram_gb is not None:
        print_line(console, _advice(costs, ram_gb))


def _cells(cost: Cost) -> list[object]:
    recall = MEASURED_RECALL.get(cost.kind)
    sizes = [f"{cost.bytes_a_vector:,.0f}", f"{cost.memory_gb:,.1f}", f"{cost.disk_gb:,.1f}"]
    times = [format_seconds(cost.build_s), f"{cost.query_s * 1000:,.1f} ms"]
    return [cost.kind, *sizes, *times, "-" if recall is None else f"{recall:.3f}"]


def _advice(costs: list[Cost], ram_gb: float) -> str:
    fitting = [cost for cost in costs if cost.memory_gb <= ram_gb and cost.kind in MEASURED_RECALL]
    if not fitting:
        smallest = min(costs, key=lambda cost: cost.memory_gb)
        return (
            f"none of these fits {ram_gb:g} GB; the smallest is {smallest.kind} with {smallest.memory_gb:.1f} GB "
            "(indexes are memory-mapped: less memory is slower, not impossible)"
        )
    highest = max(MEASURED_RECALL[cost.kind] for cost in fitting)
    good = [cost for cost in fitting if MEASURED_RECALL[cost.kind] > highest - _SAME_RECALL]
    best = min(good, key=lambda cost: cost.memory_gb)
    changed = {
        name: value
        for name, value in best.settings.model_dump().items()
        if name == "kind" or value != type(best.settings).model_fields[name].default
    }
    options = " ".join(set_option(f"retrieval.index.{name}", value) for name, value in sorted(changed.items()))
    return f"for {ram_gb:g} GB: {best.kind} ({best.memory_gb:.1f} GB): {options}"
