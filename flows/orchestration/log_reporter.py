"""A reporter that also writes into the log of Prefect's flow run what the terminal shows of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable

from flows.run.lines import RunLines, evaluation_line, note_line
from flows.run.progress import Reporter
from schemas.records.evaluation import EvaluationReport
from schemas.records.ledger import StageKey, StageRecord
from schemas.settings.root import Settings


class LogReporter:
    """A `Reporter` that tells `inner` everything, and the flow run's log what is a line.

    log: the logger of the flow run. may_log: whether Prefect's server takes lines; a run whose server is gone goes on
    without them.
    """

    def __init__(
        self,
        inner: Reporter,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
        may_log: Callable[[], bool],
    ) -> None:
        self._inner = inner
        self._log = log
        self._may_log = may_log
        self._lines = RunLines()

    def run_started(self, run: str, settings: Settings, first_iteration: int) -> None:
        """Log what begins, and the notes about its settings."""
        for line in self._lines.start(run, settings, first_iteration):
            self._say(logging.INFO, line)
        self._inner.run_started(run, settings, first_iteration)

    def noted(self, sentence: str) -> None:
        """Log what a person should know."""
        self._say(logging.INFO, note_line(sentence))
        self._inner.noted(sentence)

    def stage_started(self, key: StageKey) -> None:
        """Tell the inner one: Prefect has a task run of each stage."""
        self._inner.stage_started(key)

    def stage_progress(self, done: int, total: int) -> None:
        """Tell the inner one."""
        self._inner.stage_progress(done, total)

    def stage_pace(self, done: int, total: int, num_tokens: int) -> None:
        """Tell the inner one."""
        self._inner.stage_pace(done, total, num_tokens)

    def stage_done(self, record: StageRecord, skipped: bool) -> None:
        """Tell the inner one."""
        self._inner.stage_done(record, skipped)

    def iteration_done(self, iteration: int, numbers: dict[str, float]) -> None:
        """Log the iteration's line."""
        self._say(logging.INFO, self._lines.iteration(iteration, numbers))
        self._inner.iteration_done(iteration, numbers)

    def evaluated(self, report: EvaluationReport) -> None:
        """Log an evaluation's line."""
        self._say(logging.INFO, evaluation_line(report))
        self._inner.evaluated(report)

    def warned(self, text: str) -> None:
        """Log why nothing can be learnt."""
        self._say(logging.WARNING, text)
        self._inner.warned(text)

    def run_done(self, run: str) -> None:
        """Log that the run is done."""
        self._say(logging.INFO, self._lines.end(run))
        self._inner.run_done(run)

    def _say(self, level: int, line: str) -> None:
        if self._may_log():
            self._log.log(level, "%s", line)
