"""The command `sdsearch evaluate`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from flows.console.errors import UserError
from flows.console.options import (
    HOME,
    SetOption,
    WorkspaceOption,
    make_console,
)

CompareOption = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--compare",
        metavar="A B",
        help="Put two evaluations that were made before side by side: RUN, or RUN@UPDATES of a training.",
    ),
]
DespiteOption = Annotated[
    str | None,
    typer.Option(
        "--despite", help="Conditions that may differ between A and B and are marked, such as protocol,passages."
    ),
]


def evaluate(
    run: Annotated[str | None, typer.Option("--run", help="Evaluate a run's current policy.")] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", help="Evaluate a model folder or hub name; the settings' own by default.")
    ] = None,
    config: Annotated[str, typer.Option("--config", help="Settings that --policy is evaluated with.")] = "quickstart",
    overrides: SetOption = None,
    datasets: Annotated[
        str | None,
        typer.Option(
            "--datasets", help="'all' for data.test, or names such as nq,hotpotqa; data.dataset when not given."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Split of data.dataset.")] = None,
    num_questions: Annotated[
        int | None, typer.Option("--num-questions", min=1, help="Size of each data set's fixed sample.")
    ] = None,
    mode: Annotated[Literal["greedy", "sampled"], typer.Option("--mode", help="Decoding.")] = "greedy",
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the evaluation; derived from the request when not given.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that answer, each with its own copy of the policy.")
    ] = 1,
    compare: CompareOption = None,
    despite: DespiteOption = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Evaluate a policy greedily or by sampling and print the figures; continue where it stopped.

    With --compare nothing is evaluated.
    """
    if compare is not None:
        from flows.evaluation.launch import start_comparison

        others = {"--run": run, "--policy": policy, "--datasets": datasets, "--name": name, "--set": overrides}
        start_comparison(compare, despite, [flag for flag, given in others.items() if given], workspace, make_console())
        return
    if despite is not None:
        raise UserError(f"--despite {despite}: belongs to --compare A B; leave it out, or name two evaluations")
    from flows.evaluation.launch import start_evaluation
    from flows.evaluation.plan import Request

    request = Request(datasets, split, num_questions, mode, name)
    start_evaluation(run, policy, config, overrides or [], request, workspace, make_console(), workers)
