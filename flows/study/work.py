"""Studies: variants of one setting over seeds, each an ordinary run, compared in a table and a plot.

The runs' own ledger says what is done: a study that was stopped goes on where it stopped, within a run too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from flows.console.errors import UserError
from flows.console.interrupts import resumable
from flows.console.terminal import print_line
from flows.run.progress import RichReporter
from flows.settings.load import describe_differences
from flows.study.plan import PlannedRun, load_study, plan_runs
from flows.study.plot import draw_curves
from flows.study.results import find_outcomes, summarise
from flows.study.rewards import draw_rewards
from flows.study.show import curves_csv, print_results, table_markdown
from schemas.commands import command, path_argument
from schemas.records.ledger import RunRecord
from schemas.records.study import Study, StudyResults
from storage.database.connection import Database
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.runs.studies import write_study, write_study_files
from storage.workspace import Workspace, open_existing

Train = Callable[[PlannedRun], object]
# Is told of each run before it starts: the run, its place from 1, and whether it is finished already.
Announce = Callable[[PlannedRun, int, bool], None]


def carry_out(study: Study, workspace: Workspace, train: Train, announce: Announce) -> StudyResults:
    """Train every run of the study that is not finished, one after another, and report.

    Raises UserError before anything is trained when settings cannot be, or a run exists with other settings.
    """
    planned = plan_runs(study)
    records = _known_runs(study, planned, workspace)
    write_study(workspace, study)
    finished = {o.run for o in find_outcomes(planned, records, Database(workspace)) if o.finished}
    for number, plan in enumerate(planned, 1):
        announce(plan, number, plan.run in finished)
        if plan.run not in finished:
            train(plan)
    return report(study, workspace)


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


def study_in_terminal(name: str, folder: Path, console: Console, *, report_only: bool) -> None:
    """Train and report a study, or only report it; Ctrl-C and SIGTERM end it with a hint how to go on."""
    if report_only:
        workspace = open_existing(folder)
        study = load_study(name, workspace)
        results = report(study, workspace)
    else:
        workspace = Workspace.open(folder)
        study = load_study(name, workspace)
        with resumable(console, command("study", path_argument(name), workspace=workspace.root)):
            results = carry_out(study, workspace, *_in_terminal(study, workspace, console))
    print_results(results, console)
    print_line(console, f"table and curves: {workspace.study_folder(study.name)}")


def _in_terminal(study: Study, workspace: Workspace, console: Console) -> tuple[Train, Announce]:
    num_runs = len(study.variants) * len(study.seeds)

    def train(plan: PlannedRun) -> None:
        with console.status("loading the libraries"):
            from flows.training.loop import train_plain
        with RichReporter(None, console) as reporter:
            train_plain(plan.settings, plan.run, workspace.root, reporter)

    def announce(plan: PlannedRun, number: int, finished: bool) -> None:
        what = f"{study.title_of(plan.variant)}, seed {plan.seed}"
        print_line(console, f"study run {number}/{num_runs}: {what}{', finished already' if finished else ''}")

    return train, announce


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
