"""The command `sdsearch replay`."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.console.options import (
    HOME,
    SetOption,
    WorkspaceOption,
    make_console,
)


def replay(
    run: Annotated[str, typer.Argument(help="Name of the run whose rollouts are shown to another teacher.")],
    iterations: Annotated[
        str, typer.Option("--iterations", metavar="FIRST:LAST", help="Which iterations, both ends included.")
    ],
    overrides: SetOption = None,
    name: Annotated[
        str | None, typer.Option("--run", help="Name of the replay; derived from the request when not given.")
    ] = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Ask what if: the teacher on stored iterations under other settings; nothing is sampled or trained."""
    from flows.replay.launch import start_replay

    start_replay(run, iterations, overrides or [], name, workspace, make_console())
