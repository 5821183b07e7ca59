"""A study's results as Markdown, as CSV, and as tables for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.console import Console

from flows.console.terminal import make_table, print_line
from flows.study.results import estimate
from schemas.records.evaluation import EvaluationMode, EvaluationReport
from schemas.records.study import RunOutcome, StudyResults, VariantSummary
from schemas.records.study_figures import Estimate

_CURVE_FIGURES = ("em", "f1", "search_quality", "searches_per_rollout", "valid_share")
NOTES = """\
Mean ± standard deviation (unbiased) over seeds; a single seed has none. *Final* is after the last update, as are search
quality (the share of retrieved passages that contain a golden answer) and searches per rollout. *Best* is the highest
of a run's evaluations after the start: it was chosen on the very questions that it is measured on, so it is too high.
The difference is that of final EM, paired by seed and question; its 95 % interval is a bootstrap that resamples seeds
and questions; with a single seed it says nothing of other seeds."""


def evaluated_modes(results: StudyResults) -> list[EvaluationMode]:
    """Return the modes that the study was evaluated in, greedy first."""
    return list(dict.fromkeys(summary.mode for summary in results.summaries))


def curve_points(results: StudyResults, variant: str, mode: EvaluationMode) -> dict[int, list[EvaluationReport]]:
    """Return the evaluations of a variant's finished runs by the updates done before them, in order."""
    points: dict[int, list[EvaluationReport]] = {}
    for outcome in results.outcomes:
        if outcome.variant == variant and outcome.finished:
            for report in outcome.evaluations:
                if report.mode == mode:
                    points.setdefault(report.iteration, []).append(report)
    return dict(sorted(points.items()))


def print_results(results: StudyResults, console: Console) -> None:
    """Print one table a mode, and which runs are not finished."""
    for mode in evaluated_modes(results):
        console.print(make_table(columns_of(results), rows_of_mode(results, mode), f"{_evaluated(results)}, {mode}"))
    for line in _unfinished(results.outcomes):
        print_line(console, line)


def table_markdown(results: StudyResults, picture: str | None = None) -> str:
    """Return the study's whole report; `picture` is where the drawn curves are, seen from the report."""
    study = results.study
    num_finished = sum(outcome.finished for outcome in results.outcomes)
    parts = [
        f"# {study.name}",
        f"Settings `{study.base}`, seeds {', '.join(map(str, study.seeds))}, {num_finished} of "
        f"{len(results.outcomes)} runs finished, {_evaluated(results)}.",
    ]
    for mode in evaluated_modes(results):
        parts += [f"## {mode.capitalize()} decoding", markdown_table(columns_of(results), rows_of_mode(results, mode))]
    parts += [NOTES, *_unfinished(results.outcomes), "## Learning curves"]
    if picture:
        parts.append(f"![EM over updates]({picture})")
    for variant in dict.fromkeys(summary.variant for summary in results.summaries):
        parts += [f"{results.title_of(variant)}:", _curve_markdown(results, variant)]
    return "\n\n".join(parts) + "\n"


def curves_csv(results: StudyResults) -> str:
    """Return one row an evaluation, of unfinished runs too."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("run", "variant", "seed", "mode", "updates_done", *_CURVE_FIGURES))
    for outcome in results.outcomes:
        for report in outcome.evaluations:
            figures = (getattr(report, name) for name in _CURVE_FIGURES)
            writer.writerow((outcome.run, outcome.variant, outcome.seed, report.mode, report.iteration, *figures))
    return text.getvalue()


def columns_of(results: StudyResults) -> tuple[str, ...]:
    """Return the headings of the study's tables."""
    baseline = results.title_of(results.study.baseline)
    figures = ("final EM", "best EM", f"difference to {baseline}", "95 % interval", "search quality", "searches")
    return ("variant", "seeds", *figures)


def rows_of_mode(results: StudyResults, mode: EvaluationMode) -> list[tuple[str, ...]]:
    """Return a table's rows as they are written: a variant each, in the study's order."""
    return [
        (results.title_of(summary.variant), str(summary.num_seeds), *_figures(summary))
        for summary in results.summaries
        if summary.mode == mode
    ]


def _figures(summary: VariantSummary) -> tuple[str, ...]:
    difference = summary.difference
    shown = f"{difference.mean:+.3f}" if difference else "–"
    interval = f"{difference.low:+.3f} … {difference.high:+.3f}" if difference else "–"
    return (
        shown_estimate(summary.final_em),
        shown_estimate(summary.best_em),
        shown,
        interval,
        shown_estimate(summary.search_quality),
        shown_estimate(summary.searches_per_rollout),
    )


def _curve_markdown(results: StudyResults, variant: str) -> str:
    """EM of every mode; the other figures are the last mode's."""
    modes = evaluated_modes(results)
    by_mode = {mode: curve_points(results, variant, mode) for mode in modes}
    columns = [
        "updates",
        *(f"{mode} EM" for mode in modes),
        *(f"{name}, {modes[-1]}" for name in ("search quality", "searches", "valid format")),
    ]
    rows = []
    for updates, reports in by_mode[modes[-1]].items():
        ems = [_over_seeds(by_mode[mode][updates], "em") for mode in modes]
        others = [_over_seeds(reports, name) for name in ("search_quality", "searches_per_rollout", "valid_share")]
        rows.append((str(updates), *ems, *others))
    return markdown_table(columns, rows)


def _over_seeds(reports: Sequence[EvaluationReport], figure: str) -> str:
    return shown_estimate(estimate([getattr(report, figure) for report in reports]))


def shown_estimate(figure: Estimate) -> str:
    """Return mean ± standard deviation; the mean alone for a single seed."""
    return f"{figure.mean:.3f}" if figure.std is None else f"{figure.mean:.3f} ± {figure.std:.3f}"


def _evaluated(results: StudyResults) -> str:
    reports = [report for outcome in results.outcomes for report in outcome.evaluations]
    return f"{reports[-1].num_questions} {reports[-1].split} questions of {reports[-1].dataset}" if reports else ""


def _unfinished(outcomes: Sequence[RunOutcome]) -> list[str]:
    waiting = [outcome for outcome in outcomes if not outcome.finished]
    runs = ", ".join(f"{o.run} ({o.updates_done} of {o.num_iterations} updates)" for o in waiting)
    return [f"Not finished, and not counted: {runs}."] if waiting else []


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    # A title comes from a person's file: a bar in it must not open a column.
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
