"""The command `sdsearch export`."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.console.options import HOME, WorkspaceOption, make_console


def export(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="An empty folder, or one that is not there.")],
    version: Annotated[
        int | None, typer.Option("--version", min=0, help="Updates done; the newest when not given, 0 is the start.")
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Leave the LoRA adapter apart; else it is merged into its base.")
    ] = False,
    rollouts: Annotated[
        bool, typer.Option("--rollouts", help="The rollouts instead: a parquet table and conversations as jsonl.")
    ] = False,
    push: Annotated[
        str | None, typer.Option("--push", metavar="USER/NAME", help="Upload the folder to the Hugging Face hub too.")
    ] = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Write a run's policy as a plain Hugging Face folder with a model card, or its rollouts as data."""
    from flows.export.work import export_in_terminal

    export_in_terminal(
        run,
        to,
        version=version,
        adapter=adapter,
        rollouts=rollouts,
        push=push,
        folder=workspace,
        console=make_console(),
    )
