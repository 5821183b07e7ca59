"""The command `sdsearch ask`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from flows.console.options import HOME, SetOption, WorkspaceOption, make_console
from flows.console.streams import stop_when_unread


def ask(
    question: Annotated[
        str | None, typer.Argument(help="The question; without one, questions are asked for until Ctrl-D.")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="Ask a run's newest policy; the newest finished run when not given.")
    ] = None,
    policy: Annotated[str | None, typer.Option("--policy", help="Ask a model folder or hub name.")] = None,
    config: Annotated[str, typer.Option("--config", help="Settings that --policy is asked with.")] = "quickstart",
    hindsight: Annotated[
        str | None,
        typer.Option("--hindsight", metavar="RUN", help="Show the policy the question's hindsight block in this run."),
    ] = None,
    mode: Annotated[Literal["greedy", "sampled"], typer.Option("--mode", help="Decoding.")] = "greedy",
    json: Annotated[bool, typer.Option("--json", help="Print a line of JSON a step.")] = False,
    overrides: SetOption = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Ask a policy: its thinking, its queries, the passages and the answer appear as they are generated."""
    from flows.ask.plan import plan_asking
    from flows.ask.talk import talk

    stop_when_unread()
    plan, storage = plan_asking(run, policy, config, overrides or [], mode, workspace)
    talk(plan, storage, question, hindsight, make_console(), as_json=json)
