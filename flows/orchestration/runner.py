"""Prefect's runner of deployments, which lets its runs say how they ended before it goes itself.

Prefect's own runner kills them at Ctrl-C: the ledger is safe from that, but the flow run stands as running for ever.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import psutil
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner

from flows.console.interrupts import is_ignored
from storage.runs.lock import held_runs
from storage.workspace import Workspace

# Time for the current write, the ledger's row and the report to the server.
_GRACE_S = 30.0


def run_until_stopped(deployments: Sequence[RunnerDeployment], workspace: Workspace) -> list[str]:
    """Serve the deployments until Ctrl-C, SIGTERM or SIGHUP, and return the names of the runs that this interrupted."""
    runner = PatientRunner(workspace)
    for deployment in deployments:
        runner.add_deployment(deployment)
    wanted = [number for number in (signal.SIGINT, signal.SIGHUP) if not is_ignored(number)]
    former = {number: signal.signal(number, runner.handle_sigterm) for number in wanted}
    try:
        asyncio.run(runner.start(webserver=False))
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    return runner.interrupted


class PatientRunner(Runner):
    """A runner that at Ctrl-C and SIGTERM asks its flow runs to end and waits for them, then stops."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(pause_on_shutdown=False)
        self._workspace = workspace
        self.interrupted: list[str] = []

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        """End the flow runs, each by its own means, then unwind; Prefect sets this as the handler of SIGTERM."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if not is_ignored(number):
                signal.signal(number, _stop_waiting)
        children = [child for child in psutil.Process().children() if _is_flow_run(child)]
        pids = {child.pid for child in children}
        self.interrupted = [holder.run for holder in held_runs(self._workspace) if holder.pid in pids]
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.terminate()
        deadline = time.monotonic() + _GRACE_S
        while any(map(_lives, children)) and time.monotonic() < deadline:
            time.sleep(0.05)
        raise KeyboardInterrupt


def _stop_waiting(number: int, frame: FrameType | None) -> None:
    """A second Ctrl-C: what still runs is killed."""
    raise KeyboardInterrupt


def _is_flow_run(process: psutil.Process) -> bool:
    """True for what Prefect's runner started: it shares our process group, which a server of ours does not."""
    try:
        return "prefect" in " ".join(process.cmdline()) and os.getpgid(process.pid) == os.getpgrp()
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False


def _lives(process: psutil.Process) -> bool:
    """True until a process has ended; its exit code is left to the event loop, which waits for it."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
