"""Starts and continues runs for the command line: what can be refused is refused before anything is started."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from flows.console.errors import UserError
from flows.console.interrupts import resumable, resume_command
from flows.console.terminal import print_line
from flows.evaluation.plan import EvaluationPlan, Request, plan_model, plan_run
from flows.evaluation.plan import plan_of as evaluation_plan_of
from flows.orchestration.prefect_server import prefect_api
from flows.replay.plan import plan_of, plan_replay
from flows.run.progress import RichReporter
from flows.settings.load import load_settings, new_run_name
from flows.training.fork import fork_run
from schemas.settings.root import Settings
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.runs.lock import take_over
from storage.storage import Storage
from storage.workspace import Workspace, open_existing, validate_run_name


def start_run(
    config: str,
    overrides: Sequence[str],
    run: str | None,
    folder: Path,
    console: Console,
    *,
    use_prefect: bool,
    fork: str | None = None,
) -> None:
    """Train with the settings of `config`; the run gets a name when none is given.

    `fork` is the name of a new run that goes on from where `run` stands. Raises UserError and StorageError for
    settings, names and workspaces that cannot be used.
    """
    settings = load_settings(config, overrides)
    name = validate_run_name(new_run_name(config) if run is None else run)
    workspace = Workspace.open(folder)
    if fork is not None:
        if run is None:
            raise UserError(f"--fork {fork} needs the run that it goes on from: --run NAME")
        fork_run(Storage(workspace), name, validate_run_name(fork), settings)
        name = fork
    _Job(workspace, console, name, config, overrides, settings).do(use_prefect)


def continue_run(run: str, folder: Path, console: Console, *, use_prefect: bool, from_silent: bool = False) -> None:
    """Go on with a run at the stage where it stopped; RunNotFoundError when there is none of the name.

    from_silent: take it from a process on another machine whose heartbeat stopped; RunLockedError when it lives.
    """
    workspace = open_existing(folder, needs_database=False)
    record = Storage(workspace).find_run(run)
    if from_silent and (holder := take_over(workspace, run)) is not None:
        print_line(console, f"taken over from process {holder.pid} on {holder.host}")
    if record.evaluation_of is not None:
        _evaluate(evaluation_plan_of(record), workspace, console)
        return
    if record.replay_of is None:
        _Job(workspace, console, run).do(use_prefect)
        return
    from flows.replay.work import replay_and_print

    with resumable(console, resume_command(run, workspace.root)):
        replay_and_print(plan_of(record), Storage(workspace), console)


def start_replay(
    source: str, iterations: str, overrides: Sequence[str], run: str | None, folder: Path, console: Console
) -> None:
    """Replay iterations of a run and print what its teacher and the replay's say; done work is not done again.

    Raises UserError and StorageError for what cannot be replayed, before anything is written.
    """
    workspace = open_existing(folder, needs_database=False)
    plan = plan_replay(Ledger(ArtifactStore(workspace)).get_run(source), iterations, overrides, run)
    with console.status("loading the libraries"):
        from flows.replay.work import replay_and_print
    with resumable(console, resume_command(plan.run, workspace.root)):
        replay_and_print(plan, Storage(workspace), console)


def start_evaluation(
    run: str | None,
    policy: str | None,
    config: str,
    overrides: Sequence[str],
    request: Request,
    folder: Path,
    console: Console,
) -> None:
    """Evaluate a run's current policy, or a model with the settings of `config`, and print the table.

    Raises UserError when both are named and for what cannot be met, RunNotFoundError for a run that is not there.
    """
    if run is None:
        _evaluate(plan_model(policy, config, overrides, request), Workspace.open(folder), console)
        return
    if policy is not None:
        raise UserError("evaluate takes --run NAME or --policy MODEL; leave one of them out")
    workspace = open_existing(folder, needs_database=False)
    _evaluate(plan_run(Storage(workspace).find_run(run), overrides, request), workspace, console)


def _evaluate(plan: EvaluationPlan, workspace: Workspace, console: Console) -> None:
    with console.status("loading the libraries"):
        from flows.evaluation.work import evaluate_and_print
    with resumable(console, resume_command(plan.run, workspace.root)):
        evaluate_and_print(plan, Storage(workspace, plan.settings.storage.database_deadline_s), console)


@dataclass(frozen=True)
class _Job:
    """One call of `train` or `resume`; a resumed run takes its stored settings."""

    workspace: Workspace
    console: Console
    run: str
    config: str = ""
    overrides: Sequence[str] = ()
    settings: Settings | None = None

    def do(self, use_prefect: bool) -> None:
        """Train until the run is done; Ctrl-C and SIGTERM end it with a hint how to go on."""
        with (
            resumable(self.console, resume_command(self.run, self.workspace.root)),
            RichReporter(self.workspace.database, self.console) as reporter,
        ):
            if use_prefect:
                self._with_prefect(reporter)
            else:
                self._plain(reporter)

    def _plain(self, reporter: RichReporter) -> None:
        with self.console.status("loading the libraries"):
            from flows.training.loop import train_plain
        train_plain(self.settings, self.run, self.workspace.root, reporter, resume=self._resumes)

    def _with_prefect(self, reporter: RichReporter) -> None:
        with ExitStack() as stack:
            with self.console.status("loading the libraries and a Prefect server"):
                server = stack.enter_context(prefect_api(self.workspace, _load_libraries))
                from flows.orchestration.train_flow import train_with_prefect
            whose = "started for this run" if server.started else "named by PREFECT_API_URL or the profile"
            print_line(self.console, f"Prefect server: {server.url.removesuffix('/api')} ({whose})")
            unseen = train_with_prefect(
                self.config, self.run, list(self.overrides), self.workspace.root, reporter, resume=self._resumes
            )
        if unseen:
            print_line(
                self.console,
                f"the run is done, but Prefect's record of it is incomplete, since its server {server.url} did not "
                f"answer: {', '.join(unseen)}; the files and the database have everything",
            )

    @property
    def _resumes(self) -> bool:
        return self.settings is None


def _load_libraries() -> None:
    """Load torch and all else that a run needs: work for the seconds in which a server starts."""
    importlib.import_module("flows.orchestration.train_flow")
