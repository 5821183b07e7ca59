"""`sdsearch up`: the deployments of runs and of studies, served beside a Prefect server until Ctrl-C."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from flows.console.interrupts import resume_command
from flows.console.terminal import print_line
from flows.orchestration.prefect_server import (
    DEFAULT_PORT,
    PrefectServer,
    answers_on,
    local_port,
    local_url,
    named_url,
    own_server,
    prefect_api,
    set_environment,
    use_api,
)
from storage.workspace import Workspace

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment
    from prefect.flows import Flow

# Prefect looks for new runs every 10 seconds otherwise.
_POLL_FREQUENCY_S = "1"


def serve(port: int | None, folder: Path, console: Console) -> None:
    """Serve the deployments until Ctrl-C, SIGTERM or SIGHUP; a server that this started stops with it.

    `port` None: the server that PREFECT_API_URL or the active profile names, or port 4200 of this machine. Raises
    UserError when another program uses the port, or the named server lies elsewhere and does not answer.
    """
    workspace = Workspace.open(folder)
    set_environment()
    os.environ.setdefault("PREFECT_RUNNER_POLL_FREQUENCY", _POLL_FREQUENCY_S)
    with ExitStack() as stack:
        with console.status("loading the libraries and a Prefect server"):
            server = stack.enter_context(_server(port, workspace))
            deployments = _register_all(workspace)
            from flows.orchestration.recovery import crash_abandoned_runs
            from flows.orchestration.runner import run_until_stopped

            num_crashed = crash_abandoned_runs(workspace, just_started=server.started)
        _announce(server, workspace, console)
        if num_crashed:
            print_line(console, f"{num_crashed} flow runs whose process had died are Crashed now and can be retried")
        for run in run_until_stopped(deployments, workspace):
            print_line(console, f"run {run} was interrupted; continue with: {resume_command(run, workspace.root)}")


def _server(port: int | None, workspace: Workspace) -> AbstractContextManager[PrefectServer]:
    named = None if port else named_url()
    wanted = port or (local_port(named) if named else DEFAULT_PORT)
    if wanted is None:
        return prefect_api(workspace)
    if not answers_on(wanted):
        return own_server(workspace, wanted)
    use_api(local_url(wanted))
    return nullcontext(PrefectServer(local_url(wanted), started=False))


def _announce(server: PrefectServer, workspace: Workspace, console: Console) -> None:
    whose = "started" if server.started else "already there"
    for line in (
        f"Prefect server: {server.url.removesuffix('/api')} ({whose}); workspace: {workspace.root}",
        "serving sdsearch/train and sdsearch-study/run; in another terminal:",
        f"  export PREFECT_API_URL={server.url}",
        "  prefect deployment run sdsearch/train --watch",
        "  prefect deployment run sdsearch/train --param config=tiny --watch",
        "  prefect deployment run sdsearch-study/run --param study=study_quick --watch",
        "Ctrl-C stops what was started here",
    ):
        print_line(console, line)


def _register_all(workspace: Workspace) -> list[RunnerDeployment]:
    """Make the deployments known to the server, so that they can be run from the first announced moment."""
    from flows.orchestration.study_flow import study_flow
    from flows.orchestration.train_flow import train_flow

    return [
        _register(train_flow, "train", "Train a policy by SD-Search.", workspace),
        _register(study_flow, "run", "Train variants over seeds and compare them.", workspace),
    ]


def _register(flow: Flow[..., str], name: str, description: str, workspace: Workspace) -> RunnerDeployment:
    from prefect.types.entrypoint import EntrypointType

    deployment = flow.to_deployment(
        name=name,
        parameters={"workspace": str(workspace.root)},
        description=description,
        # By module, so that it is found from any folder.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    assert not isinstance(deployment, Coroutine), "to_deployment answers at once outside an event loop"
    deployment.apply()
    return deployment
