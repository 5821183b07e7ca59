"""The command `sdsearch study`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows.console.errors import UserError
from flows.console.options import HOME, WorkspaceOption, make_console

if TYPE_CHECKING:
    from flows.study.work import What


def study(
    name: Annotated[
        str, typer.Argument(help="Name of a shipped study or of one in the workspace, or the path of a TOML file.")
    ] = "study_quick",
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing; table and curves from the runs that are finished.")
    ] = False,
    report_test: Annotated[
        bool,
        typer.Option(
            "--report-test",
            help="Once all runs are finished: their policies answer the questions of protocol.report_split; recorded.",
        ),
    ] = False,
    workers: Annotated[
        int,
        typer.Option("--workers", min=1, help="Runs trained at one time, each in a process of its own."),
    ] = 1,
    pool: Annotated[
        str | None,
        typer.Option("--pool", help="Prefect work pool whose workers train, by the deployment sdsearch/train."),
    ] = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Train variants over seeds in a plain loop and compare them; continue where it stopped."""
    from flows.study.work import study_in_terminal

    if report_only and report_test:
        raise UserError("study takes --report-only or --report-test; leave one of them out")
    if pool is not None and (workers > 1 or report_only or report_test):
        raise UserError(
            "study --pool leaves the trainings to the pool's workers; leave out --report-only, --report-test and "
            "--workers (the pool's concurrency limit says how many train at one time)"
        )
    what: What = "report_held_out" if report_test else "report" if report_only else "train"
    study_in_terminal(name, workspace, make_console(), what, workers, pool)
