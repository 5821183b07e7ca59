"""Studies: variants of one setting over seeds, each an ordinary run, compared in a table and a plot.

The runs' own ledger says what is done: a study that was stopped goes on where it stopped, within a run too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from flows.console.errors import UserError
from flows.console.interrupts import resumable
from flows.console.terminal import print_line
from flows.run.lines import note_line
from flows.run.progress import RichReporter
from flows.settings.load import describe_differences
from flows.study.plan import PlannedRun, load_study, plan_runs
from flows.study.plot import draw_curves
from flows.study.results import find_outcomes, summarise
from flows.study.rewards import draw_rewards
from flows.study.show import curves_csv, print_results, table_markdown
from flows.study.side_by_side import SideBySide
from flows.study.trainings import OneByOne, RunFailure, Trainings
from schemas.commands import command, path_argument
from schemas.records.evaluation import EvaluationReport
from schemas.records.ledger import RunRecord, StageKey
from schemas.records.study import Study, StudyResults
from storage.database.connection import Database
from storage.database.stage_rows import file_of
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.runs.studies import write_study, write_study_files
from storage.workspace import Workspace, open_existing


class Carried(NamedTuple):
    """What a study has come to: its results, None while no run is finished, and the trainings that failed now."""

    results: StudyResults | None
    failures: list[RunFailure]

    def checked(self, study: Study, workspace: Workspace) -> StudyResults:
        """Return the results; UserError that names what failed, and how to go on."""
        if self.failures:
            raise UserError(
                f"study {study.name}: {len(self.failures)} of its runs failed: "
                f"{'; '.join(f'{run} ({reason})' for run, reason in self.failures)}; continue it with: "
                f"{command('study', study.name, workspace=workspace.root)}"
            )
        assert self.results is not None, "every run is finished"
        return self.results


def carry_out(study: Study, workspace: Workspace, trainings: Trainings) -> Carried:
    """Train every run of the study that is not finished, and report what is finished.

    Raises UserError before anything is trained when settings cannot be, or a run exists with other settings.
    """
    planned = plan_runs(study)
    finished = _finished(study, planned, workspace)
    write_study(workspace, study)
    failures = trainings.carry_out(planned, finished)
    has_results = not failures or _finished(study, planned, workspace)
    return Carried(report(study, workspace) if has_results else None, failures)


def _finished(study: Study, planned: Sequence[PlannedRun], workspace: Workspace) -> set[str]:
    records = _known_runs(study, planned, workspace)
    return {outcome.run for outcome in find_outcomes(planned, records, Database(workspace)) if outcome.finished}


def report(study: Study, workspace: Workspace) -> StudyResults:
    """Write the study's table, figures and curves from what the runs have measured so far, and return them.

    Raises UserError when no run is finished, or a run exists with other settings.
    """
    planned = plan_runs(study)
    outcomes = find_outcomes(planned, _known_runs(study, planned, workspace), Database(workspace))
    if not any(outcome.finished for outcome in outcomes):
        raise UserError(
            f"study {study.name}: none of its {len(planned)} runs is finished in the workspace {workspace.root}; train "
            f"them with: {command('study', study.name, workspace=workspace.root)}"
        )
    results = summarise(study, outcomes, Database(workspace))
    write_study_files(workspace, study.name, _files(results))
    return results


def study_in_terminal(name: str, folder: Path, console: Console, *, report_only: bool, num_workers: int = 1) -> None:
    """Train and report a study, or only report it; Ctrl-C and SIGTERM end it with a hint how to go on.

    Raises UserError, after the table of what is finished, when a training failed.
    """
    if report_only:
        workspace = open_existing(folder)
        study = load_study(name, workspace)
        carried = Carried(report(study, workspace), [])
    else:
        workspace = Workspace.open(folder)
        study = load_study(name, workspace)
        workers = ("--workers", str(num_workers)) if num_workers > 1 else ()
        with resumable(console, command("study", path_argument(name), *workers, workspace=workspace.root)):
            carried = carry_out(study, workspace, _in_terminal(study, workspace, console, num_workers))
    if carried.results is not None:
        print_results(carried.results, console)
        print_line(console, f"table and curves: {workspace.study_folder(study.name)}")
    carried.checked(study, workspace)


def _in_terminal(study: Study, workspace: Workspace, console: Console, num_workers: int) -> Trainings:
    num_runs = len(study.variants) * len(study.seeds)

    def announce(plan: PlannedRun, number: int, finished: bool) -> None:
        what = f"{study.title_of(plan.variant)}, seed {plan.seed}"
        print_line(console, f"study run {number}/{num_runs}: {what}{', finished already' if finished else ''}")

    def tell(line: str) -> None:
        print_line(console, line)

    def train(plan: PlannedRun) -> None:
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
    return SideBySide(study, workspace, num_workers, announce, tell, _last_figures(workspace))


def _last_figures(workspace: Workspace) -> Callable[[PlannedRun], str]:
    """Return what says a finished run's EM after its last update, read from its files."""
    artifacts = ArtifactStore(workspace)
    ledger = Ledger(artifacts)

    def say(plan: PlannedRun) -> str:
        done = ledger.done(StageKey(run=plan.run, iteration=plan.settings.iterations, stage="evaluate"))
        reports = [] if done is None else artifacts.read_records(file_of(done, "reports"), EvaluationReport)
        return "".join(f", {report.mode} EM {report.em:.3f}" for report in reports)

    return say


def _known_runs(study: Study, planned: Sequence[PlannedRun], workspace: Workspace) -> Mapping[str, RunRecord]:
    """Return the records of the study's runs that exist; UserError when one has other settings."""
    ledger = Ledger(ArtifactStore(workspace))
    names = {plan.run for plan in planned}
    records = {record.run: record for record in ledger.list_runs() if record.run in names}
    for plan in planned:
        record = records.get(plan.run)
        if record and record.settings_hash != plan.settings.content_hash():
            raise UserError(
                f"study {study.name}: run '{plan.run}' exists with other settings "
                f"({describe_differences(record.settings_json, plan.settings)}); give the changed study another name, "
                "or change it back"
            )
    return records


def _files(results: StudyResults) -> dict[str, bytes]:
    rewards = draw_rewards(results)
    return {
        **({} if rewards is None else {"rewards.svg": rewards}),
        "results.json": results.model_dump_json(indent=1).encode() + b"\n",
        "table.md": table_markdown(results, picture="curves.svg").encode(),
        "curves.csv": curves_csv(results).encode(),
        "curves.svg": draw_curves(results, "svg"),
        "curves.png": draw_curves(results, "png"),
    }
