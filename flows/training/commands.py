"""The commands `sdsearch train` and `sdsearch resume`."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.console.options import (
    HOME,
    ConfigArgument,
    ForkOption,
    NoPrefectOption,
    SetOption,
    WorkspaceOption,
    make_console,
)
from flows.console.terminal import print_line


def train(
    config: ConfigArgument = "quickstart",
    overrides: SetOption = None,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Name of the run; derived from the settings' name and the time when not given."),
    ] = None,
    fork: ForkOption = None,
    workspace: WorkspaceOption = HOME,
    no_prefect: NoPrefectOption = False,
) -> None:
    """Train a policy; a run of the same name and settings continues where it stopped."""
    from flows.training.launch import carry_out, new_job

    job = new_job(config, overrides or [], run, workspace, fork)
    carry_out(job, make_console(), use_prefect=not no_prefect)


def resume(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    workspace: WorkspaceOption = HOME,
    no_prefect: NoPrefectOption = False,
    from_silent: Annotated[
        bool,
        typer.Option(
            "--take-over", help="Take over the run from a process on another machine whose heartbeat stopped."
        ),
    ] = False,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Of an evaluation: processes that answer, as of sdsearch evaluate.")
    ] = 1,
) -> None:
    """Continue a run at the stage where it stopped, with its stored settings."""
    from flows.resume import continue_run

    continue_run(
        run, workspace, make_console(), use_prefect=not no_prefect, from_silent=from_silent, num_workers=workers
    )


def join(
    endpoint: Annotated[str, typer.Argument(help="HOST:PORT of the run's machine: the run's distributed.endpoint.")],
    workspace: WorkspaceOption = HOME,
    wait: Annotated[float, typer.Option("--wait", min=0, help="Seconds that the run may take to be there.")] = 600.0,
) -> None:
    """Lend this machine to a run that trains on several, until the run ends; the workspace is a shared folder."""
    from flows.training.ranks.join import join as join_run

    console = make_console()
    join_run(endpoint, workspace, wait, lambda line: print_line(console, line))
