"""Cheap processes: one that has imported everything forks a child for each command, and can kill it on time.

A start of the interpreter with torch and transformers costs seconds; a fork costs milliseconds, and kill -9 hits a
process of its own all the same. The server itself never opens a database nor runs a model, so that its children
start clean. It reads requests and writes answers as JSON lines.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.crash.events import ORDER, Event, Probe, Strike, read_trace

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 900.0
# The last ones are what a run imports when it first needs them.
_MODULES = (
    "flows.app",
    "flows.training.launch",
    "flows.training.loop",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "faiss",
    "storage.retrieval.corpora",
    "storage.retrieval.indexes",
)


@dataclass(frozen=True)
class Ended:
    """How a process ended; `code` is its exit code, negative for a signal."""

    code: int
    output: str
    trace: list[Event]
    cpu_s: float


class ForkServer:
    """A context manager: commands of `sdsearch` in forked processes."""

    def __enter__(self) -> ForkServer:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.forkserver"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(TIMEOUT_S)

    def run(self, command: Sequence[str], folder: Path, strike: Strike | None = None, *, eager: bool = False) -> Ended:
        """Run `sdsearch COMMAND --workspace FOLDER/workspace` to its end, which may be the strike's.

        eager: rows enter the database after each stage instead of every few seconds.
        """
        request = _request(command, folder, folder / "workspace")
        return self._ask([request | {"strike": strike and strike.to_json(), "eager": eager}])[0]

    def run_together(self, commands: Sequence[Sequence[str]], folder: Path) -> list[Ended]:
        """Run several commands at the same time in one workspace."""
        return self._ask(
            [_request(command, folder / str(place), folder / "workspace") for place, command in enumerate(commands)]
        )

    def _ask(self, requests: list[dict[str, Any]]) -> list[Ended]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()
        answers = json.loads(self._process.stdout.readline())
        return [_ended(Path(request["folder"]), answer) for request, answer in zip(requests, answers, strict=True)]


def _request(command: Sequence[str], folder: Path, workspace: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return {
        "command": [*command, "--workspace", str(workspace)],
        "folder": str(folder),
        "workspace": str(workspace),
        "strike": None,
        "eager": False,
    }


def _ended(folder: Path, answer: dict[str, float]) -> Ended:
    output = (folder / "output").read_text(encoding="utf-8", errors="replace")
    return Ended(int(answer["code"]), output, read_trace(folder / "trace"), answer["cpu_s"])


def serve() -> None:
    """Import what a run needs, then fork a child for each request until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What a library prints is no answer.
    _import_everything()
    for line in sys.stdin:
        started = [_fork(request) for request in json.loads(line)]
        answers.write(json.dumps([_wait(child, reader) for child, reader in started]) + "\n")
        answers.flush()


def _import_everything() -> None:
    import torch

    torch.set_num_threads(1)
    for name in _MODULES:
        importlib.import_module(name)


def _fork(request: dict[str, Any]) -> tuple[int, int]:
    """Start a child and return its pid and the pipe on which it asks for its own death."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_the_child(request, writer)
    os.close(writer)
    return child, reader


def _wait(child: int, reader: int) -> dict[str, float]:
    _execute_on_time(child, reader)
    os.close(reader)
    _, status, usage = os.wait4(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "cpu_s": usage.ru_utime + usage.ru_stime}


def _be_the_child(request: dict[str, Any], executioner: int) -> None:
    code = 70
    try:
        folder = Path(request["folder"])
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        # A background job of a shell ignores Ctrl-C, and its children with it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        workspace = Path(request["workspace"])
        strike = Strike(**request["strike"]) if request["strike"] else None
        Probe(workspace, folder / "trace", strike, executioner).install(request["eager"])
        import flows.app

        code = flows.app.run_command(request["command"])
    except BaseException:
        sys.excepthook(*sys.exc_info())  # Goes to the output that the answer carries.
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _execute_on_time(child: int, reader: int) -> None:
    """Send the child the signal that it asks for, after the delay that it names; return when it has ended."""
    deadline, number = time.monotonic() + TIMEOUT_S, int(signal.SIGKILL)
    while True:
        left_s = deadline - time.monotonic()
        if not select.select([reader], [], [], max(left_s, 0.0))[0]:
            os.kill(child, number)  # Not reaped yet, so the pid is still its own.
            deadline, number = time.monotonic() + TIMEOUT_S, int(signal.SIGKILL)
            continue
        order = os.read(reader, struct.calcsize(ORDER))
        if not order:
            return
        delay_s, number = struct.unpack(ORDER, order)
        deadline = time.monotonic() + delay_s


if __name__ == "__main__":
    serve()
