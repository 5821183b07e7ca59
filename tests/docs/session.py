"""Runs the commands of a session's blocks, one after another, in a folder of its own."""

from __future__ import annotations

import io
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from transformers.utils.logging import disable_progress_bar

from flows.app import run_command
from tests.docs.blocks import Block, Step
from tests.docs.form import is_like

ROOT: Final = Path(__file__).parents[2]
_TIMEOUT_S: Final = 1800.0
_SERVES_WITHIN_S: Final = 600.0
_QUIET_S: Final = 60.0
_ENVIRONMENT: Final = {"COLUMNS": "160", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}


class Session:
    """A context manager: a folder, an environment, and the servers that were started in it.

    within: commands of the program run in this process, which saves the seconds in which each loads its libraries.
    """

    def __init__(self, folder: Path, *, within: bool) -> None:
        self._folder = folder
        self._within = within
        tools = folder / "bin"
        tools.mkdir(parents=True)
        program = tools / "sdsearch"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flows.app "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        own = {"PATH": path, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(folder / "prefect")}
        own |= {"SHIPPED": str(ROOT / "flows" / "configs")}
        kept = {name: value for name, value in os.environ.items() if name not in ("SDSEARCH_HOME", "PREFECT_API_URL")}
        self._environment = kept | _ENVIRONMENT | own
        self._servers: list[subprocess.Popen[str]] = []
        self._place = folder.resolve() / "place"
        self._place.mkdir()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in reversed(self._servers):
            with suppress(ProcessLookupError):  # It may have ended by itself.
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(_SERVES_WITHIN_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, block: Block) -> list[list[str]]:
        """Prepare what a block needs, run its commands, and return the lines that each printed."""
        for line in block.before:
            self._prepare(line)
        printed: list[list[str]] = []
        for place, step in enumerate(block.steps):
            serves = block.keeps_running and place == 0
            printed.append(self._serve(step) if serves else self._run(step))
        return printed

    def _prepare(self, line: str) -> None:
        """Run a line of shell; what it leaves in the background ends with the session."""
        if self._within and line.startswith("sdsearch "):
            self._run_within(shlex.split(line)[1:])
            return
        process = self._start(line)
        self._servers.append(process)
        out, _ = process.communicate(timeout=_TIMEOUT_S)
        if process.returncode:
            raise RuntimeError(f"before: {line}: exit code {process.returncode}: {out[-2000:]}")

    def _run(self, step: Step) -> list[str]:
        words = shlex.split(step.command.replace("\\\n", " "))
        if words[0] == "export":
            self._environment |= dict([words[1].split("=", 1)])
            return []
        if self._within and words[0] == "sdsearch":
            return self._run_within(words[1:])
        process = self._start(step.command)
        out, _ = process.communicate(timeout=_TIMEOUT_S)
        return self._lines(out)

    def _run_within(self, words: Sequence[str]) -> list[str]:
        printed = io.StringIO()
        disable_progress_bar()  # As the program has it in a process of its own.
        former = dict(os.environ)
        os.environ.update(_ENVIRONMENT)
        warnings = logging.StreamHandler(printed)  # As logging does where nothing else listens.
        warnings.setLevel(logging.WARNING)
        logging.getLogger().addHandler(warnings)
        try:
            with chdir(self._place), redirect_stdout(printed), redirect_stderr(printed):
                run_command(words)
        finally:
            logging.getLogger().removeHandler(warnings)
            os.environ.clear()
            os.environ.update(former)
        return self._lines(printed.getvalue())

    def _serve(self, step: Step) -> list[str]:
        """Start a command that serves, and return its lines up to those that the block shows."""
        process = self._start(step.command)
        self._servers.append(process)
        printed: list[str] = []

        def read() -> None:
            """Read to the end: a pipe that nobody empties would stop the server."""
            assert process.stdout is not None
            printed.extend(line for text in process.stdout for line in self._lines(text))

        threading.Thread(target=read, daemon=True).start()
        until = time.monotonic() + _SERVES_WITHIN_S
        num_lines, since = 0, time.monotonic()
        while not is_like(step.output, printed) and time.monotonic() < until and process.poll() is None:
            time.sleep(0.2)
            if len(printed) > num_lines:
                num_lines, since = len(printed), time.monotonic()
            if num_lines and time.monotonic() - since > _QUIET_S:
                break
        return list(printed)

    def _start(self, command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=self._place,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def _lines(self, text: str) -> list[str]:
        """Return the lines of a text, without blank ones at its ends, paths as from the session's folder."""
        lines = [line.rstrip() for line in text.replace(f"{self._place}/", "").splitlines()]
        while lines and not lines[-1]:
            lines.pop()
        while lines and not lines[0]:
            lines.pop(0)
        return lines
