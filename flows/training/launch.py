"""`sdsearch train`: what can be refused is refused before anything is started; then with Prefect or without."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from flows.console.errors import UserError
from flows.console.interrupts import resumable, resume_command
from flows.console.terminal import print_line
from flows.orchestration.prefect_server import prefect_api
from flows.run.progress import RichReporter
from flows.settings.load import load_settings, new_run_name
from flows.training.fork import fork_run
from flows.training.job import Job, open_job
from storage.workspace import validate_run_name

if TYPE_CHECKING:
    from flows.orchestration.train_flow import PrefectRun


def new_job(config: str, overrides: Sequence[str], run: str | None, folder: Path, fork: str | None = None) -> Job:
    """Return what is trained with the settings of `config`; the run gets a name when none is given.

    `fork` is the name of a new run, made here, that goes on from where `run` stands. Raises UserError and StorageError
    for settings, names and workspaces that cannot be used.
    """
    settings = load_settings(config, overrides)
    name = validate_run_name(new_run_name(config) if run is None else run)
    if fork is None:
        return open_job(name, folder, settings, config, tuple(overrides))
    if run is None:
        raise UserError(f"--fork {fork} needs the run that it continues: --run NAME")
    job = open_job(fork, folder, settings, config, tuple(overrides))
    fork_run(job.storage, name, fork, settings)
    return job


def carry_out(job: Job, console: Console, *, use_prefect: bool) -> None:
    """Train until the run is done; Ctrl-C and SIGTERM end it with a hint how to go on."""
    workspace = job.storage.workspace
    with (
        resumable(console, resume_command(job.run, workspace.root)),
        RichReporter(workspace.database, console) as reporter,
    ):
        if use_prefect:
            with _prefect_run(job, reporter, console) as prefect_run:
                prefect_run.flow(**prefect_run.parameters)
        else:
            with console.status("loading the libraries"):
                from flows.training.loop import drive
            drive(job, reporter)


@contextmanager
def _prefect_run(job: Job, reporter: RichReporter, console: Console) -> Iterator[PrefectRun]:
    """Give the flow that does the job while a server is there for it, and say at the end what that server lacks."""
    with ExitStack() as stack:
        with console.status("loading the libraries and a Prefect server"):
            server = stack.enter_context(prefect_api(job.storage.workspace, _load_libraries))
            from flows.orchestration.train_flow import PrefectRun
        whose = "started for this run" if server.started else "named by PREFECT_API_URL or the profile"
        print_line(console, f"Prefect server: {server.url.removesuffix('/api')} ({whose})")
        prefect_run = PrefectRun(job, reporter)
        with prefect_run.end_may_be_unseen():
            yield prefect_run
    if prefect_run.unseen:
        print_line(
            console,
            f"the run is done, but Prefect's record of it is incomplete, since its server {server.url} did not "
            f"answer: {', '.join(prefect_run.unseen)}; the files and the database have everything",
        )


def _load_libraries() -> None:
    """Load torch and all else that a run needs: work for the seconds in which a server starts."""
    importlib.import_module("flows.orchestration.train_flow")
