"""Studies: variants of one setting over seeds, each an ordinary run, compared in a table and a plot.

The runs' own ledger says what is done: a study that was stopped goes on where it stopped, within a run too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal, NamedTuple, assert_never

from rich.console import Console

from flows.console.errors import UserError
from flows.console.interrupts import resumable
from flows.console.terminal import print_line
from flows.run.lines import note_line
from flows.run.progress import RichReporter
from flows.study.alike import runs_alike, take_over_start
from flows.study.held_out import check_held_out, read_held_out
from flows.study.plan import PlannedRun, load_study, plan_runs
from flows.study.reporting import finished_runs, report
from flows.study.show import print_results
from flows.study.show_figures import print_figures
from flows.study.side_by_side import SideBySide
from flows.study.trainings import OneByOne, RunFailure, Trainings, title_line
from schemas.commands import command, path_argument
from schemas.records.evaluation import EvaluationReport
from schemas.records.ledger import StageKey
from schemas.records.study import Study, StudyResults
from storage.database.stage_rows import file_of
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.runs.studies import read_held_out_readings, write_study
from storage.storage import Storage
from storage.workspace import Workspace, open_existing

What = Literal["train", "report", "report_held_out"]
_OPTIONS: Final[dict[What, str]] = {"train": "", "report": "--report-only", "report_held_out": "--report-test"}


class Carried(NamedTuple):
    """What a study has come to: its results, None while no run is finished, and the trainings that failed now."""

    results: StudyResults | None
    failures: list[RunFailure]

    def checked(self, study: Study, workspace: Workspace) -> StudyResults:
        """Return the results; UserError that names what failed, and how to go on."""
        if self.failures:
            raise UserError(
                f"study {study.name}: {len(self.failures)} of its runs failed: "
                f"{'; '.join(_by_reason(self.failures))}; continue it with: "
                f"{command('study', study.name, workspace=workspace.root)}"
            )
        assert self.results is not None, "every run is finished"
        return self.results


def _by_reason(failures: Sequence[RunFailure]) -> Iterator[str]:
    """Yield each reason once, with the runs that it ended."""
    for reason in dict.fromkeys(failure.reason for failure in failures):
        yield f"{', '.join(failure.run for failure in failures if failure.reason == reason)} ({reason})"


def carry_out(study: Study, workspace: Workspace, trainings: Trainings) -> Carried:
    """Train every run of the study that is not finished, and report what is finished.

    Raises UserError before anything is trained when settings cannot be, or a run exists with other settings.
    """
    planned = plan_runs(study)
    finished = finished_runs(study, planned, workspace)
    write_study(workspace, study)
    failures = trainings.carry_out(planned, finished)
    has_results = not failures or finished_runs(study, planned, workspace)
    return Carried(report(study, workspace) if has_results else None, failures)


def study_in_terminal(
    name: str, folder: Path, console: Console, what: What, num_workers: int = 1, pool: str | None = None
) -> None:
    """Train and report a study, or only report it; Ctrl-C and SIGTERM end it with a hint how to go on.

    Raises UserError, after the table of what is finished, when a training failed.
    """
    report_only = what != "train"
    workspace = open_existing(folder) if report_only else Workspace.open(folder)
    study = load_study(name, workspace)
    options = [_OPTIONS[what], *(("--workers", str(num_workers)) if num_workers > 1 else ())]
    words = [path_argument(name), *filter(None, options), *(("--pool", pool) if pool else ())]
    with resumable(console, command("study", *words, workspace=workspace.root)):
        carried = _carried(study, workspace, console, what, num_workers, pool)
    if carried.results is not None:
        print_results(carried.results, console)
        for figures in carried.results.figures:
            print_figures(figures, carried.results, console)
        print_line(console, f"table, figures and curves: {workspace.study_folder(study.name)}")
        _say_what_was_read(study, workspace, console)
    carried.checked(study, workspace)


def _carried(
    study: Study, workspace: Workspace, console: Console, what: What, num_workers: int, pool: str | None
) -> Carried:
    match what:
        case "train":
            in_terminal = _on_pool(study, workspace, console, pool) if pool else None
            return carry_out(study, workspace, in_terminal or _in_terminal(study, workspace, console, num_workers))
        case "report":
            return Carried(report(study, workspace), [])
        case "report_held_out":
            planned = plan_runs(study)
            check_held_out(study, planned, finished_runs(study, planned, workspace), workspace)
            failures = read_held_out(study, planned, workspace, num_workers, partial(print_line, console))
            return Carried(report(study, workspace), failures)
        case unknown:
            assert_never(unknown)


def _say_what_was_read(study: Study, workspace: Workspace, console: Console) -> None:
    """Print since when the questions for reporting are known, or how they are read."""
    readings = read_held_out_readings(workspace, study.name)
    split = study.protocol.report_split
    if readings:
        times = "once" if len(readings) == 1 else f"{len(readings)} times"
        when = ", ".join(f"{reading.read_at:%Y-%m-%d %H:%M} UTC" for reading in readings)
        print_line(console, f"{split} questions were read {times} ({when}); choices made since then have seen them")
    else:
        how = command("study", study.name, _OPTIONS["report_held_out"], workspace=workspace.root)
        print_line(console, f"{split} questions were not read; when nothing is left to choose: {how}")


def _on_pool(study: Study, workspace: Workspace, console: Console, pool: str) -> Trainings:
    with console.status("loading the libraries"):
        from flows.orchestration.prefect_server import set_environment

        set_environment()  # Before prefect is imported.
        from flows.orchestration.pool import OnPool
    return OnPool(study, workspace, pool, partial(print_line, console), _last_figures(workspace))


def _in_terminal(study: Study, workspace: Workspace, console: Console, num_workers: int) -> Trainings:
    tell = partial(print_line, console)

    def announce(plan: PlannedRun, number: int, finished: bool) -> None:
        tell(f"{title_line(study, plan, number)}{', finished already' if finished else ''}")

    def train(plan: PlannedRun) -> None:
        take_over_start(Storage(workspace), plan.run, runs_alike(plan_runs(study), plan))
        with console.status("loading the libraries"):
            from flows.training.loop import train_plain
        with RichReporter(None, console) as reporter:
            train_plain(plan.settings, plan.run, workspace.root, reporter)

    if num_workers == 1:
        return OneByOne(train, announce, tell)
    threads = max(plan.settings.model.torch_threads for plan in plan_runs(study))
    if num_workers * threads > (cores := os.cpu_count() or 1):
        tell(
            note_line(
                f"{num_workers} workers with {threads} threads each share {cores} cores, so that they hinder each "
                f"other; with model.torch_threads={max(1, cores // num_workers)} in the study's set they would not"
            )
        )
    return SideBySide(study, workspace, num_workers, tell, _last_figures(workspace))


def _last_figures(workspace: Workspace) -> Callable[[PlannedRun], str]:
    """Return what says a finished run's EM after its last update, read from its files."""
    artifacts = ArtifactStore(workspace)
    ledger = Ledger(artifacts)

    def say(plan: PlannedRun) -> str:
        done = ledger.done(StageKey(run=plan.run, iteration=plan.settings.iterations, stage="evaluate"))
        reports = [] if done is None else artifacts.read_records(file_of(done, "reports"), EvaluationReport)
        return "".join(f", {report.mode} EM {report.em:.3f}" for report in reports if not report.further)

    return say
