"""A plan as people read it: a table of figures, each with how it is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from rich.console import Console

from flows.console.terminal import format_seconds, make_table, print_line
from schemas.records.plan import Figure, Plan


def print_plan(plan: Plan, console: Console) -> None:
    """Print the figures of a plan, and whether the run fits."""
    ranks = f"{plan.ranks} x {plan.device}, sharding {plan.sharding}" if plan.ranks > 1 else plan.device
    print_line(console, f"{plan.config}: {plan.model} on {ranks}")
    rows = [
        *_rows("an iteration", plan.workload),
        *_rows("memory", plan.memory),
        *_rows("time", plan.seconds),
        *_rows("disk", plan.disk),
    ]
    console.print(make_table(("", "figure", "value", "known"), rows))
    if plan.measured_on:
        print_line(console, f"measured: means of run {plan.measured_on}, which had these settings")
    else:
        print_line(console, "nothing is measured: no run of this workspace had these settings")
    verdict = "is enough" if plan.fits else "is not enough"
    print_line(console, f"memory of {plan.device}, {_bytes(plan.device_bytes)}, {verdict}")


def _rows(section: str, figures: Mapping[str, Figure]) -> list[tuple[str, str, str, str]]:
    return [
        (section if not place else "", name, format_figure(figure), figure.source)
        for place, (name, figure) in enumerate(figures.items())
    ]


def format_figure(figure: Figure) -> str:
    """Return a figure with its unit, in three digits."""
    match figure.unit:
        case "bytes":
            return _bytes(figure.value)
        case "seconds":
            return format_seconds(figure.value) if figure.value >= 60 else f"{figure.value:.3g} s"
        case "tokens" | "rollouts":
            return f"{figure.value:,.0f}"
        case unknown:
            assert_never(unknown)


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"
