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

from flows.run.status import shown_status
from storage.errors import RunLockedError, WorkspaceError
from storage.runs.lock import RunLock, lock_holder, take_over
from storage.workspace import Workspace
from tests.support.records import make_run

HOLD = """
import sys
from storage.runs.lock import RunLock
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


def leave_lock(workspace: Workspace, **changes: object) -> Path:
    """Write the lock file of run `first` as a holder leaves it that never let go."""
    path = workspace.lock("first")
    path.unlink(missing_ok=True)
    with RunLock(workspace, "first") as holder:
        text = holder.model_copy(update=changes).model_dump_json()
    path.write_text(text, encoding="utf-8")
    return path


def silent_for(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


def test_a_lock_that_a_dead_process_of_this_machine_left_is_taken_over(workspace: Workspace) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    leave_lock(workspace, pid=gone.pid)
    assert lock_holder(workspace, "first") is None
    with RunLock(workspace, "first") as holder:
        assert holder.pid == os.getpid()
    # The same pid belongs to another process by now.
    leave_lock(workspace, process_started_at=silent_for(86_400))
    assert lock_holder(workspace, "first") is None
    with RunLock(workspace, "first"):
        pass


def test_a_holder_of_this_machine_whose_lock_is_not_seen_still_holds_while_it_lives(workspace: Workspace) -> None:
    leave_lock(workspace)
    with pytest.raises(RunLockedError, match=f"held by process {os.getpid()}"):
        RunLock(workspace, "first").__enter__()


def test_another_machine_with_a_fresh_heartbeat_is_refused_and_cannot_be_taken_from(workspace: Workspace) -> None:
    for heartbeat_at in (silent_for(20), silent_for(-3600)):
        leave_lock(workspace, host="elsewhere", pid=4, heartbeat_at=heartbeat_at)
        for attempt in (RunLock(workspace, "first").__enter__, lambda: take_over(workspace, "first")):
            with pytest.raises(RunLockedError, match=r"held by process 4 on elsewhere .*sign of life \d+ s ago"):
                attempt()
        assert lock_holder(workspace, "first") is not None


def test_another_machine_that_fell_silent_is_taken_over_by_a_person_only(workspace: Workspace) -> None:
    path = leave_lock(workspace, host="elsewhere", pid=4, heartbeat_at=silent_for(3 * 3600))
    message = rf"left by process 4 on elsewhere, silent since .*resume first --take-over \(or remove {path}\)"
    with pytest.raises(RunLockedError, match=message):
        RunLock(workspace, "first").__enter__()
    assert lock_holder(workspace, "first") is not None
    taken_from = take_over(workspace, "first")
    assert taken_from is not None
    assert taken_from.host == "elsewhere"
    with RunLock(workspace, "first") as holder:
        assert holder.pid == os.getpid()


def test_taking_over_needs_a_free_lock_and_leaves_a_free_run_alone(workspace: Workspace) -> None:
    assert take_over(workspace, "first") is None
    with held_elsewhere(workspace) as process, pytest.raises(RunLockedError, match=f"process {process.pid}"):
        take_over(workspace, "first")
    assert take_over(workspace, "first") is not None
    assert take_over(workspace, "first") is None


def test_the_heartbeat_goes_on_while_the_run_is_held(workspace: Workspace) -> None:
    with RunLock(workspace, "first", heartbeat_s=0.01) as holder:
        deadline = time.monotonic() + 20
        while (seen := lock_holder(workspace, "first")) is None or seen.heartbeat_at == holder.heartbeat_at:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert holder.is_same(seen)


@pytest.mark.parametrize("how", ["written over", "removed"])
def test_a_holder_learns_that_its_run_was_taken(workspace: Workspace, how: str) -> None:
    lock = RunLock(workspace, "first", heartbeat_s=0.01)
    with lock as holder:
        lock.check()
        path = workspace.lock("first")
        if how == "removed":
            path.unlink()
            with RunLock(workspace, "first"):
                pass
        else:
            path.write_text(holder.model_copy(update={"host": "elsewhere", "pid": 4}).model_dump_json())
        with pytest.raises(RunLockedError, match="run 'first' was taken over by"):
            lock.check()
        time.sleep(0.05)
        with pytest.raises(RunLockedError, match="taken over"):
            lock.check()
    successor = lock_holder(workspace, "first")
    assert (successor is not None) == (how == "written over")


def test_a_name_that_would_leave_the_folder_is_refused(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="run name"):
        RunLock(workspace, "../first")


def test_a_run_is_shown_as_its_lock_says(workspace: Workspace) -> None:
    record = make_run("first").model_copy(update={"status": "running"})
    assert shown_status(workspace, record) == "dead; resume"
    with RunLock(workspace, "first"):
        assert shown_status(workspace, record) == "running"
        assert shown_status(workspace, record.model_copy(update={"status": "failed"})) == "failed"
    assert shown_status(workspace, record) == "dead; resume"
    leave_lock(workspace, process_started_at=silent_for(86_400))
    assert shown_status(workspace, record) == "dead; resume"
    leave_lock(workspace, host="elsewhere", heartbeat_at=silent_for(5))
    assert shown_status(workspace, record) == "running"
    leave_lock(workspace, host="elsewhere", heartbeat_at=silent_for(300.4))
    assert shown_status(workspace, record) == "silent for 5 min 0 s on elsewhere"
