"""What the commands share: their common options, and the console that they print to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

_PIPED_WIDTH = 160
HOME = Path("workspace")
WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", envvar="SDSEARCH_HOME", help="Folder of the database and all files.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting; may be given several times.")
]
ConfigArgument = Annotated[str, typer.Argument(help="Name of shipped settings, or the path of a TOML file.")]
ForkOption = Annotated[
    str | None,
    typer.Option("--fork", metavar="NAME", help="Name of a new run that continues from the weights of --run."),
]
NoPrefectOption = Annotated[bool, typer.Option("--no-prefect", help="Train in a plain loop, without any server.")]


def make_console() -> Console:
    """Return the console for output: wide where it is piped, so that tables are not folded."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    return console
