"""What a screening prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from rich.console import Console

from flows.console.terminal import ascii_json, make_table, print_line, takes_any_text
from schemas.records.screen import ScreenResults, ScreenRow

_COLUMNS: Final = ("variant", "value", "95 % interval", "difference", "95 % interval")
_TITLES: Final = {
    ("hit", "auc"): "AUC: credit against hits",
    ("counterfactual", "auc"): "AUC: credit against the sign of the counterfactual credit",
    ("counterfactual", "spearman"): "rank correlation of credit and counterfactual credit",
}


def print_screen(results: ScreenResults, folder: Path, console: Console, *, as_json: bool) -> None:
    """Print a table a truth and statistic, the best variant first; with `as_json` everything as one JSON document."""
    if as_json:
        text = results.model_dump_json(indent=1)
        sys.stdout.write((text if takes_any_text(sys.stdout) else ascii_json(text)) + "\n")
        return
    print_line(
        console,
        f"run {results.run}, iterations {results.first}:{results.last}: {results.num_turns} turns that searched, of "
        f"{results.num_groups} groups; {results.num_hits} of them hit ({results.hit_means})",
    )
    for key, title in _TITLES.items():
        rows = [row for row in results.rows if (row.truth, row.statistic) == key]
        if rows:
            best_first = sorted(rows, key=lambda row: -row.value)
            cells = [_cells(row, results) for row in best_first]
            console.print(make_table(_COLUMNS, cells, f"{title}, {rows[0].num_turns} turns"))
    if not results.num_draws:
        print_line(console, "no counterfactual credit: --resample N draws each turn anew")
    for each in results.predictions:
        said = "not defined" if each.correlation is None else f"{each.correlation:+.2f}"
        print_line(
            console,
            f"{each.statistic} against {each.truth} and trained {each.figure}: rank correlation {said} over "
            f"{each.num_variants} variants",
        )
    print_line(console, f"turns, draws, credit and results: {folder}")


def _cells(row: ScreenRow, results: ScreenResults) -> tuple[str, ...]:
    own = (results.titles[row.variant], f"{row.value:.3f}", f"{row.low:.3f} … {row.high:.3f}")
    if row.variant == results.baseline:
        return (*own, "–", "–")
    return (*own, f"{row.difference:+.3f}", f"{row.difference_low:+.3f} … {row.difference_high:+.3f}")
