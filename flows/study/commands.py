"""The command `sdsearch study`."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.console.options import (
    HOME,
    WorkspaceOption,
    make_console,
)


def study(
    name: Annotated[
        str, typer.Argument(help="Name of a shipped study or of one in the workspace, or the path of a TOML file.")
    ] = "study_quick",
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing; table and curves from the runs that are finished.")
    ] = False,
    workers: Annotated[
        int,
        typer.Option("--workers", min=1, help="Runs trained at one time, each in a process of its own."),
    ] = 1,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Train variants over seeds in a plain loop and compare them; continue where it stopped."""
    from flows.study.work import study_in_terminal

    study_in_terminal(name, workspace, make_console(), report_only=report_only, num_workers=workers)
