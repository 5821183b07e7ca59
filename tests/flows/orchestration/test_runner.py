"""At Ctrl-C the runner of deployments lets its flow runs say how they ended, and names those it interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.console.serving import let_ignored_signals_be
from flows.orchestration.runner import PatientRunner
from storage.workspace import Workspace

# Stands for a flow run: holds its run's lock, and takes a moment for its last words.
FLOW_RUN = """
import pathlib, signal, sys, time
from storage.runs.lock import RunLock
from storage.workspace import Workspace

def end(number, frame):
    time.sleep(0.5)
    pathlib.Path(sys.argv[1], "last words").touch()
    sys.exit(1)

signal.signal(signal.SIGTERM, end)
with RunLock(Workspace.open(sys.argv[1]), "first"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def flow_run(workspace: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", FLOW_RUN, str(workspace), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def handlers_are_put_back() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, former, strict=True):
        signal.signal(number, handler)


def test_flow_runs_are_waited_for_and_named(tmp_path: Path) -> None:
    runner = PatientRunner(Workspace.open(tmp_path))
    with flow_run(tmp_path, "prefect.engine") as process:
        with pytest.raises(KeyboardInterrupt):
            runner.handle_sigterm()
        assert (tmp_path / "last words").exists()
        assert process.wait() == 1
    assert runner.interrupted == ["first"]


def test_processes_that_are_no_flow_runs_are_left_alone(tmp_path: Path) -> None:
    runner = PatientRunner(Workspace.open(tmp_path))
    with flow_run(tmp_path, "something else") as process:
        with pytest.raises(KeyboardInterrupt):
            runner.handle_sigterm()
        time.sleep(0.1)
        assert process.poll() is None
    assert runner.interrupted == []


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(KeyboardInterrupt):
        PatientRunner(Workspace.open(tmp_path)).handle_sigterm()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGHUP) not in (signal.SIG_IGN, signal.SIG_DFL)


class Server:
    """Stands in for uvicorn's, which sets `handle_exit` as the handler of SIGINT and SIGTERM, ignored or not."""

    def __init__(self) -> None:
        self.left: list[int] = []

    def handle_exit(self, number: int, frame: object) -> None:
        self.left.append(number)


def test_a_server_does_not_end_by_a_signal_that_was_ignored() -> None:
    server = Server()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    let_ignored_signals_be(server)  # type: ignore[arg-type]
    server.handle_exit(signal.SIGINT, None)
    server.handle_exit(signal.SIGTERM, None)
    assert server.left == [signal.SIGTERM]
