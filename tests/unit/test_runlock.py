"""One process a run; the lock goes with its holder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage.errors import RunLockedError, WorkspaceError
from storage.runlock import RunLock, lock_holder
from storage.workspace import Workspace

HOLD = """
import sys
from storage.runlock import RunLock
from storage.workspace import Workspace
with RunLock(Workspace.open(sys.argv[1]), "first"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path)


@contextmanager
def held_elsewhere(workspace: Workspace) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the lock of run `first` until it is ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workspace.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_holder_in_the_same_process_is_refused_until_the_first_leaves(workspace: Workspace) -> None:
    with RunLock(workspace, "first"):
        with pytest.raises(RunLockedError, match=f"run 'first' is held by process {os.getpid()} on "):
            RunLock(workspace, "first").__enter__()
        with RunLock(workspace, "second") as other:
            assert other.run == "second"
    with RunLock(workspace, "first"):
        pass


def test_the_holder_describes_this_process(workspace: Workspace) -> None:
    with RunLock(workspace, "first") as holder:
        assert lock_holder(workspace, "first") == holder
    assert holder.pid == os.getpid()
    now = datetime.now(UTC)
    assert now - timedelta(seconds=30) < holder.locked_at <= now
    running = subprocess.check_output(["ps", "-o", "etimes=", "-p", str(os.getpid())], text=True)
    expected = time.time() - int(running)
    assert holder.process_started_at.timestamp() == pytest.approx(expected, abs=3)


def test_nobody_holds_a_run_that_was_never_locked_or_was_let_go(workspace: Workspace) -> None:
    assert lock_holder(workspace, "first") is None
    with RunLock(workspace, "first"):
        pass
    assert lock_holder(workspace, "first") is None


def test_an_error_inside_lets_the_run_go(workspace: Workspace) -> None:
    with pytest.raises(RuntimeError, match="stage failed"), RunLock(workspace, "first"):
        raise RuntimeError("stage failed")
    assert lock_holder(workspace, "first") is None


def test_another_process_is_named_and_its_death_frees_the_run(workspace: Workspace) -> None:
    with held_elsewhere(workspace) as process:
        holder = lock_holder(workspace, "first")
        assert holder is not None
        assert holder.pid == process.pid
        with pytest.raises(RunLockedError, match=f"held by process {process.pid} on .*; wait until it ends"):
            RunLock(workspace, "first").__enter__()
        process.kill()
        process.wait()
        with RunLock(workspace, "first") as successor:
            assert successor.pid == os.getpid()


def test_a_name_that_would_leave_the_folder_is_refused(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="run name"):
        RunLock(workspace, "../first")
