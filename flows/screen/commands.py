"""The command `sdsearch screen`."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.console.options import HOME, WorkspaceOption, make_console


def screen(
    run: Annotated[str, typer.Argument(help="Name of the run whose stored rollouts are taken.")],
    variants: Annotated[
        str,
        typer.Option(
            "--variants",
            metavar="FILE",
            help="A TOML file with a table a variant, or a study's name.",
        ),
    ],
    iterations: Annotated[
        str, typer.Option("--iterations", metavar="FIRST:LAST", help="Which iterations, both ends included.")
    ] = "1:4",
    groups: Annotated[
        int, typer.Option("--groups", min=1, help="Groups an iteration, those of mixed outcomes first.")
    ] = 16,
    resample: Annotated[
        int, typer.Option("--resample", min=0, help="Draws from each point of a rollout; 0: no counterfactual credit.")
    ] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draws, the groups and the intervals.")] = 0,
    against: Annotated[
        str | None, typer.Option("--against", metavar="STUDY", help="Compare with the variants that a study trained.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON document.")] = False,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Rank variants of the teacher without training: how far does their credit agree with what turns are worth?"""
    from flows.screen.work import screen_in_terminal

    screen_in_terminal(
        run,
        variants,
        iterations,
        num_groups=groups,
        num_draws=resample,
        seed=seed,
        against=against,
        folder=workspace,
        as_json=as_json,
        console=make_console(),
    )
