"""The command `sdsearch plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.console.options import HOME, ConfigArgument, SetOption, WorkspaceOption, make_console


def plan(
    config: ConfigArgument = "quickstart",
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="Cards, each with a rank; distributed.ranks when not given.")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu", help="Kind of card: a100, h100, h200, b200, l40s or rtx4090; this machine when not given."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    overrides: SetOption = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Estimate memory, time and disk of a run; each figure is marked measured, computed or guessed."""
    from flows.plan.show import print_plan
    from flows.plan.work import make_plan

    made = make_plan(config, overrides or [], workspace, gpu, gpus)
    if as_json:
        typer.echo(made.model_dump_json(indent=1))
    else:
        print_plan(made, make_console())
