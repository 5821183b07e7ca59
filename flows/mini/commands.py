"""The commands `sdsearch mini …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, assert_never

import typer

from flows.console.errors import UserError
from flows.console.options import make_console

mini_app = typer.Typer(no_args_is_help=True, help="The mini policy that ships with the program.")


@mini_app.command("build")
def mini_build(
    out: Annotated[Path, typer.Option("--out", help="Folder to write the policy to.")] = Path("mini"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything that is random.")] = 0,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Begin with this policy instead of building one; 'mini' is the shipped one."),
    ] = None,
    reading: Annotated[
        int,
        typer.Option("--reading", min=0, help="Steps of further training in reading, with one passage and with three."),
    ] = 0,
    protocol: Annotated[
        Literal["tags", "tool_call"],
        typer.Option("--protocol", help="How it searches; 'tool_call' begins with a policy, --from."),
    ] = "tags",
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Steps of training in tool calls (--protocol tool_call).")
    ] = 400,
) -> None:
    """Train the mini policy again from the embedded world, and print what it can do."""
    from flows.mini.build import build, build_tool_caller

    match protocol:
        case "tags":
            build(out, seed, make_console(), start, reading)
        case "tool_call" if reading:
            raise UserError("--reading trains with tags; leave it out with --protocol tool_call")
        case "tool_call":
            build_tool_caller(out, seed, make_console(), start or "mini", steps)
        case unknown:
            assert_never(unknown)


@mini_app.command("measure")
def mini_measure(
    policy: Annotated[str, typer.Argument(help="Folder of the policy; 'mini' is the shipped one.")] = "mini",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the questions and the sampling.")] = 0,
) -> None:
    """Print what a mini policy can do: plain, on invented names, and with each kind of hindsight block."""
    from flows.mini.build import measure

    measure(policy, seed, make_console())
