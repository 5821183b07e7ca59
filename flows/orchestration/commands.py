"""The command `sdsearch up`."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.console.options import (
    HOME,
    WorkspaceOption,
    make_console,
)


def up(
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Port of the Prefect server; 4200 when not given.")
    ] = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Serve sdsearch/train and sdsearch-study/run, beside a local Prefect server if none answers.

    Ctrl-C, SIGTERM and SIGHUP let the runs under way say how they ended, then stop both.
    """
    from flows.orchestration.up import serve

    serve(port, workspace, make_console())
