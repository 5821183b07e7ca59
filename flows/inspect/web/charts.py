"""The curves of a run and of several runs, as plain data that the page's script draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, Final, NamedTuple

from schemas.records.ledger import STAGES

Row = Mapping[str, Any]
_INTERVAL: Final = ", 95 % interval"


class Curve(NamedTuple):
    """One line of a chart: a value for each x, None where there is none; `low` and `high` bound its band."""

    label: str
    values: list[float | None]
    low: list[float | None] | None = None
    high: list[float | None] | None = None


class Chart(NamedTuple):
    """Curves over the same x (updates or iterations), lines or stacked areas."""

    title: str
    unit: str
    x_label: str
    x: list[int]
    curves: list[Curve]
    is_stacked: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the chart as the script takes it."""
        return {
            "title": self.title,
            "unit": self.unit,
            "xLabel": self.x_label,
            "x": self.x,
            "stacked": self.is_stacked,
            "curves": [curve._asdict() for curve in self.curves],
        }


_SINGLE = (
    ("Reward", "mean of the rollouts", (("reward", "reward_mean"),)),
    ("Search quality", "share of passages with a golden answer", (("search quality", "search_quality"),)),
    ("Searches", "per rollout", (("searches", "searches_per_rollout"),)),
    ("Valid rollouts", "share", (("valid", "valid_share"),)),
    ("Distillation loss L_SD", "nats", (("L_SD", "sd_loss"),)),
    ("KL to the reference", "nats", (("KL", "kl"),)),
    ("Entropy gap", "student - teacher, nats", (("gap", "entropy_gap"),)),
    ("Gradient norm ratio", "distillation / GRPO", (("ratio", "grad_norm_ratio"),)),
    ("Log-ratio", "teacher - student, nats", (("CORRECT", "log_ratio_correct"), ("INCORRECT", "log_ratio_incorrect"))),
    (
        "Tokens per second",
        "tokens/s",
        (("sample", "sample_tokens_per_s"), ("teacher", "teacher_tokens_per_s"), ("update", "update_tokens_per_s")),
    ),
)


def evaluation_charts(rows: Sequence[Row]) -> list[Chart]:
    """Return EM and F1 over updates, from rows of evaluations with `em_error` and `f1_error` (standard errors)."""
    return [_evaluated(rows, "em", "Dev EM"), _evaluated(rows, "f1", "Dev F1")] if rows else []


def _evaluated(rows: Sequence[Row], metric: str, title: str) -> Chart:
    x = sorted({row["updates_done"] for row in rows})
    names = sorted({_series(row) for row in rows})
    return Chart(title, f"mean{_INTERVAL}", "updates", x, [_with_interval(rows, name, metric, x) for name in names])


def _series(row: Row) -> str:
    return f"{row['label']} {row['mode']}".strip() if row.get("label") else str(row["mode"])


def _with_interval(rows: Sequence[Row], name: str, metric: str, x: Sequence[int]) -> Curve:
    by_x = {row["updates_done"]: row for row in rows if _series(row) == name}

    def at(value: Callable[[Row], float]) -> list[float | None]:
        return [value(by_x[point]) if point in by_x else None for point in x]

    def error(row: Row) -> float:
        return 1.96 * (row[f"{metric}_error"] or 0.0)

    return Curve(name, at(lambda r: r[metric]), at(lambda r: r[metric] - error(r)), at(lambda r: r[metric] + error(r)))


def iteration_charts(rows: Sequence[Row]) -> list[Chart]:
    """Return the charts of a run's iterations, from rows of v_iterations in order; empty ones are left out."""
    x = [row["iteration"] for row in rows]
    charts = [
        Chart(title, unit, "iteration", x, [Curve(label, [row[name] for row in rows]) for label, name in columns])
        for title, unit, columns in _SINGLE
    ]
    charts.append(Chart("Groups", "share", "iteration", x, _composition(rows), True))
    seconds = [Curve(stage, [row[f"{stage}_s"] for row in rows]) for stage in STAGES]
    charts.append(Chart("Seconds by stage", "s", "iteration", x, seconds, True))
    return [chart for chart in charts if any(v is not None for curve in chart.curves for v in curve.values)]


def _composition(rows: Sequence[Row]) -> list[Curve]:
    right = [row["all_correct_share"] for row in rows]
    wrong = [row["all_incorrect_share"] for row in rows]
    mixed = [None if r is None or w is None else 1.0 - r - w for r, w in zip(right, wrong, strict=True)]
    return [Curve("all CORRECT", right), Curve("mixed", mixed), Curve("all INCORRECT", wrong)]


def over_seeds(charts: Sequence[Sequence[Chart]]) -> list[Chart]:
    """Return the charts of runs that differ in their seed as one chart a title: means, from the lowest to the highest.

    A mean is over the runs that have a value there; stacked areas have no such band and are left out.
    """
    titles = dict.fromkeys(chart.title for of_run in charts for chart in of_run if not chart.is_stacked)
    return [_banded([chart for of_run in charts for chart in of_run if chart.title == title]) for title in titles]


def _banded(charts: Sequence[Chart]) -> Chart:
    x = sorted({point for chart in charts for point in chart.x})
    labels = dict.fromkeys(curve.label for chart in charts for curve in chart.curves)
    curves = []
    for label in labels:
        of_runs = [_spread(c.x, curve.values, x) for c in charts for curve in c.curves if curve.label == label]
        there = [[value for value in at if value is not None] for at in zip(*of_runs, strict=True)]
        low, mean, high = ([each(values) if values else None for values in there] for each in (min, fmean, max))
        curves.append(Curve(label, mean, low, high))
    return charts[0]._replace(x=x, curves=curves)


def compared(charts: Mapping[str, Sequence[Chart]]) -> list[Chart]:
    """Return one chart a title with the lines of every run that has it; stacked areas cannot share axes."""
    titles = dict.fromkeys(chart.title for of_run in charts.values() for chart in of_run if not chart.is_stacked)
    return [_merged(title, charts) for title in titles]


def _merged(title: str, charts: Mapping[str, Sequence[Chart]]) -> Chart:
    found = {run: chart for run, of_run in charts.items() for chart in of_run if chart.title == title}
    first = next(iter(found.values()))
    x = sorted({point for chart in found.values() for point in chart.x})
    curves = [
        Curve(
            run if len(chart.curves) == 1 else f"{run} {curve.label}",
            *(_spread(chart.x, values, x) for values in (curve.values, curve.low, curve.high)),
        )
        for run, chart in found.items()
        for curve in chart.curves
    ]
    return Chart(title, first.unit.removesuffix(_INTERVAL), first.x_label, x, curves)


def _spread(own: Sequence[int], values: Sequence[float | None] | None, x: Sequence[int]) -> Any:
    if values is None:
        return None
    by_x = dict(zip(own, values, strict=True))
    return [by_x.get(point) for point in x]
