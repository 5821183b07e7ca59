"""What a replay prints: what it changes, what it does, and its figures beside the source's."""

from __future__ import annotations

import time
from itertools import groupby

from rich.console import Console

from flows.console.terminal import format_seconds, make_table, print_line
from flows.replay.plan import ReplayPlan, format_iterations, requested_changes
from flows.run.progress import SilentReporter
from schemas.records.ledger import RunRecord, StageKey, StageRecord
from schemas.settings.root import Settings
from schemas.settings.rules import ANSWER_LEAKS
from storage.database.canned import load_canned
from storage.database.connection import Database


class ReplayReporter(SilentReporter):
    """Prints a line an iteration: what was adopted from the source, what was computed, what had been done before."""

    def __init__(self, plan: ReplayPlan, source: RunRecord, console: Console) -> None:
        self._plan = plan
        self._source = source
        self._console = console
        self._stages: list[str] = []
        self._started = time.monotonic()

    def run_started(self, run: str, settings: Settings, first_iteration: int) -> None:
        """Say what is replayed and which settings differ from the source's."""
        changes = requested_changes(self._source, settings) or "same settings"
        iterations = format_iterations(self._plan.iterations)
        print_line(self._console, f"replay {run}: iterations {iterations} of run {self._source.run}; {changes}")
        if settings.hindsight.answer:
            self.noted(ANSWER_LEAKS)

    def noted(self, sentence: str) -> None:
        """Print what a person should know."""
        print_line(self._console, f"note: {sentence}")

    def warned(self, text: str) -> None:
        """Print what goes wrong beside the replay."""
        print_line(self._console, f"warning: {text}")

    def stage_started(self, key: StageKey) -> None:
        """Time the iteration from its first stage on."""
        if not self._stages:
            self._started = time.monotonic()

    def stage_done(self, record: StageRecord, skipped: bool) -> None:
        """Note where the stage's files come from."""
        how = "done before" if skipped else "computed" if record.adopted_from is None else "adopted"
        self._stages.append(f"{record.stage} {how}")

    def iteration_done(self, iteration: int, numbers: dict[str, float]) -> None:
        """Print the iteration's line."""
        seconds = format_seconds(time.monotonic() - self._started)
        print_line(self._console, f"iteration {iteration}: {', '.join(self._stages)}; {seconds}")
        self._stages = []


def print_comparison(run: str, database: Database, console: Console) -> None:
    """Print a replay's figures beside its source's; where the source had no teacher, its column is empty."""
    rows = database.query(load_canned("replay").sql, {"run": run}).to_pylist()
    if not rows:
        print_line(console, f"replay {run}: no token was distilled, so there is nothing to compare")
    for iterations, figures in groupby(rows, key=lambda row: row["iterations"]):
        cells = [(row["figure"], row["source"], row["replay"]) for row in figures]
        console.print(make_table(("figure", "source", "replay"), cells, f"iterations {format_iterations(iterations)}"))
