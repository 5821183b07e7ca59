"""`sdsearch` within this process: what it printed, how it ended, and which ends are allowed."""

from __future__ import annotations

import io
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from transformers.utils.logging import disable_progress_bar

from flows.app import run_command
from flows.run.progress import RichReporter
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.workspace import Workspace

TRACEBACK = "Traceback (most recent call last)"


class Ended(NamedTuple):
    """How a command ended; `code` is 1 with a traceback in `err` where a process would have shown one."""

    code: int
    out: str
    err: str


class BegunError(BaseException):
    """A run has begun: nothing of its start is left that could refuse it."""


def sdsearch(*arguments: str) -> Ended:
    """Run one command."""
    disable_progress_bar()  # As the program has it in a process of its own.
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = run_command(arguments)
        except BegunError:
            code = 0
        except Exception:
            traceback.print_exc(file=err)
            code = 1
    return Ended(code, out.getvalue(), err.getvalue())


def options(overrides: Sequence[str], workspace: Path) -> list[str]:
    """Return the words of `--set` and `--workspace`."""
    return [*(word for override in overrides for word in ("--set", override)), "--workspace", str(workspace)]


def doctor(config: str, overrides: Sequence[str], workspace: Path) -> Ended:
    """Ask the doctor."""
    return sdsearch("doctor", config, *options(overrides, workspace))


def train(config: str, overrides: Sequence[str], workspace: Path) -> Ended:
    """Train to the end, in a plain loop."""
    return sdsearch("train", config, "--no-prefect", "--run", "drawn", *options(overrides, workspace))


def begin(config: str, overrides: Sequence[str], workspace: Path) -> Ended:
    """Train up to where the run has begun."""
    with _stopping_at_the_beginning():
        return train(config, overrides, workspace)


def problems_of(ended: Ended, codes: Sequence[int]) -> list[str]:
    """Return what is not allowed in an end: another code, a traceback, or other than one line for an error."""
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    wrong = [] if ended.code in codes else [f"exit code {ended.code}"]
    wrong += ["a traceback"] if TRACEBACK in ended.err + ended.out else []
    wrong += [f"{len(lines)} error lines"] if len(lines) != (ended.code == 2) else []
    return [f"{problem}: {_end_of(ended.err)}" for problem in wrong]


def disagreement(config: str, overrides: Sequence[str], workspace: Path) -> list[str]:
    """Return what is wrong with how the doctor and a start of training see the same settings; empty for nothing.

    What training refuses, the doctor must have called missing; and what is refused leaves no run behind.
    """
    seen = doctor(config, overrides, workspace)
    begun = begin(config, overrides, workspace)
    wrong = [f"doctor: {problem}" for problem in problems_of(seen, (0, 1, 2))]
    wrong += [f"train: {problem}" for problem in problems_of(begun, (0, 2))]
    if begun.code and not seen.code:
        wrong.append(f"training refuses what the doctor calls fine: {_end_of(begun.err)}")
    if begun.code and (left := runs_in(workspace)):
        wrong.append(f"a run was left behind: {left}")
    return wrong


def runs_in(workspace: Path) -> list[str]:
    """Return the names of a workspace's runs."""
    if not workspace.is_dir():
        return []
    return [record.run for record in Ledger(ArtifactStore(Workspace(workspace))).list_runs()]


def _end_of(err: str) -> str:
    """Return the last line that says something, with the last place in the program that a traceback names."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    places = [
        line for line in lines if line.startswith("File ") and "site-packages" not in line and "/lib/" not in line
    ]
    return " ".join([*lines[-1:], *places[-1:]])[-600:]


@contextmanager
def _stopping_at_the_beginning() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise BegunError

    with mock.patch.object(RichReporter, "run_started", stop):
        yield
