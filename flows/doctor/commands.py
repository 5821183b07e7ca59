"""The command `sdsearch doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.console.options import (
    HOME,
    ConfigArgument,
    SetOption,
    WorkspaceOption,
    make_console,
)


def doctor(
    config: ConfigArgument = "quickstart",
    overrides: SetOption = None,
    meet: Annotated[
        str | None,
        typer.Option(
            "--meet",
            metavar="HOST:PORT",
            help="Instead: meet the other machines at machine 0 and check what all share; started on each of them.",
        ),
    ] = None,
    machines: Annotated[int, typer.Option("--machines", help="With --meet: how many machines there are.")] = 2,
    machine: Annotated[
        int, typer.Option("--machine", help="With --meet: this machine's number; 0 is the one at HOST:PORT.")
    ] = 0,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1.0, help="With --meet: seconds to wait for the other machines.")
    ] = 300.0,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Check what the settings need on this machine; exit code 1 when something is missing."""
    from flows.doctor.doctor import doctor as examine
    from flows.doctor.doctor import meet_others

    if meet is None:
        is_well = examine(config, overrides or [], workspace, make_console())
    else:
        is_well = meet_others(meet, machines, machine, timeout_s, workspace, make_console())
    if not is_well:
        raise SystemExit(1)
