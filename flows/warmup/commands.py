"""The command `sdsearch warmup`."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.console.options import HOME, ConfigArgument, NoPrefectOption, SetOption, WorkspaceOption, make_console


def warmup(
    config: ConfigArgument = "quickstart",
    name: Annotated[str, typer.Option("--name", help="Name of the warm-up; its folder is warmups/NAME.")] = "warmup",
    overrides: SetOption = None,
    workspace: WorkspaceOption = HOME,
    no_prefect: NoPrefectOption = False,
) -> None:
    """Teach a model the protocol from demonstrations, before RL; continue where it stopped."""
    from flows.warmup.launch import warm_up_in_terminal

    warm_up_in_terminal(config, name, overrides or [], workspace, make_console(), use_prefect=not no_prefect)
