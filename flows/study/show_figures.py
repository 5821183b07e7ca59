"""A study's figures as tables for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.console import Console

from flows.console.terminal import make_table
from flows.study.show import markdown_table, shown_estimate
from schemas.records.study import StudyResults
from schemas.records.study_figures import FIGURES, FigureRow, StudyFigures

NOTES = """\
Mean ± standard deviation (unbiased) over seeds, and in brackets the difference to the baseline with its 95 % interval,
a bootstrap that resamples seeds and questions. *Found*: a retrieved passage contains a golden answer. *Read*: EM of
the questions for which that holds. *All evidence*: for every fact that the question needs, a passage that says it was
retrieved. *Area under EM*: the mean of the learning curve over updates, from the start. *Updates until*: the updates
after which EM reaches the threshold, linear between evaluations; a run that does not reach it counts with its last
number of updates. The p-values of the primary comparisons are corrected for their number (Holm). Seconds are wall-clock
time on a machine that other runs may have shared."""
_PRIMARY = ("variant", "mode", "figure", "value", "difference", "95 % interval", "p", "p (Holm)")
_COSTS = ("variant", "runs", "training s", "evaluation s", "sampled tokens", "update tokens")


def print_figures(figures: StudyFigures, results: StudyResults, console: Console) -> None:
    """Print the primary comparisons, and with the questions for choosing the cost."""
    title = f"primary comparisons, {questions_of(figures)}"
    console.print(make_table(_PRIMARY, list(_primary_rows(figures, results)), title))
    if figures is results.figures[0]:
        console.print(make_table(_COSTS, _cost_rows(figures, results), "cost of a run, mean over seeds"))


class FigureTable(NamedTuple):
    """A table of figures: the section that it belongs to, its own title ("" for a section's only table), its cells."""

    section: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def figure_tables(figures: StudyFigures, results: StudyResults) -> Iterator[FigureTable]:
    """Yield all figures: the primary comparisons, a table a mode and figure, the cost."""
    yield FigureTable("Primary comparisons", "", _PRIMARY, list(_primary_rows(figures, results)))
    for mode in dict.fromkeys(row.mode for row in figures.rows):
        rows = [row for row in figures.rows if row.mode == mode]
        for figure in dict.fromkeys(row.figure for row in rows):
            of_figure = [row for row in rows if row.figure == figure]
            columns, cells = _by_updates(of_figure, results)
            yield FigureTable(f"{mode.capitalize()} decoding", _heading(figure, results), columns, cells)
    yield FigureTable("Cost of a run", "", _COSTS, _cost_rows(figures, results))


def figures_markdown(figures: StudyFigures, results: StudyResults) -> str:
    """Return all figures as Markdown."""
    parts, section = [f"# {figures.study}: figures on {questions_of(figures)}"], ""
    for number, table in enumerate(figure_tables(figures, results)):
        parts += [f"## {table.section}"] * (table.section != section)
        parts += [f"{table.title}:"] * bool(table.title)
        parts += [markdown_table(table.columns, table.rows), *([NOTES] if number == 0 else [])]
        section = table.section
    return "\n\n".join(parts) + "\n"


def figures_csv(figures: StudyFigures) -> str:
    """Return one row a figure of a run, and its value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("run", "variant", "seed", "dataset", "split", "mode", "figure", "updates", "value"))
    for run in figures.runs:
        of_run = (run.run, run.variant, run.seed, figures.dataset, figures.split, run.mode, run.figure)
        writer.writerow((*of_run, "" if run.updates is None else run.updates, run.value))
    return text.getvalue()


def _primary_rows(figures: StudyFigures, results: StudyResults) -> Iterator[tuple[str, ...]]:
    for row in figures.rows:
        if row.is_primary:
            name = _heading(row.figure, results) + ("" if row.updates is None else f" after {row.updates}")
            difference = row.difference
            tested: tuple[str, ...] = ("–",) * 4
            if difference is not None:
                p_values = (f"{p:.4f}" if p is not None else "–" for p in (difference.p_value, difference.p_holm))
                interval = f"{difference.low:+.3f} … {difference.high:+.3f}"
                tested = (f"{difference.mean:+.3f}", interval, *p_values)
            yield (results.title_of(row.variant), row.mode, name, _value(row), *tested)


def _by_updates(rows: Sequence[FigureRow], results: StudyResults) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return one figure's columns and rows: a row a variant, a column a number of updates."""
    points = list(dict.fromkeys(row.updates for row in rows))
    columns = ("variant", *("whole curve" if point is None else f"after {point}" for point in points))
    lines = []
    for variant in dict.fromkeys(row.variant for row in rows):
        of_variant = {row.updates: row for row in rows if row.variant == variant}
        cells = (_cell(of_variant[point]) if point in of_variant else "–" for point in points)
        lines.append((results.title_of(variant), *cells))
    return columns, lines


def _cell(row: FigureRow) -> str:
    difference = row.difference
    if difference is None:
        return _value(row)
    return f"{_value(row)} ({difference.mean:+.3f}: {difference.low:+.3f} … {difference.high:+.3f})"


def _value(row: FigureRow) -> str:
    reached = "" if row.num_reached is None else f", reached by {row.num_reached} of {row.num_seeds}"
    return f"{shown_estimate(row.value)}{reached}"


def _cost_rows(figures: StudyFigures, results: StudyResults) -> list[tuple[str, ...]]:
    return [
        (
            results.title_of(cost.variant),
            str(cost.num_seeds),
            *(f"{amount:,.0f}" for amount in (cost.train_s, cost.evaluate_s, cost.sampled_tokens, cost.update_tokens)),
        )
        for cost in figures.costs
    ]


def _heading(figure: str, results: StudyResults) -> str:
    name = next(title for name, title in FIGURES.items() if name == figure)
    return f"{name} EM {results.study.protocol.threshold:g}" if figure == "updates_until" else name


def questions_of(figures: StudyFigures) -> str:
    """Return in words which questions the figures are of."""
    return f"{figures.num_questions} {figures.split} questions of {figures.dataset}"
