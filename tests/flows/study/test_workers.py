"""Studies side by side: the same bits as one after another, whichever process is killed on the way."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from flows.app import run_command
from flows.jobs.orders import TrainOrder
from flows.jobs.worker import carry_out
from flows.run.progress import SilentReporter
from flows.study.alike import runs_alike, take_over_start
from flows.study.plan import load_study, plan_runs
from flows.training.loop import train_plain
from schemas.records.ledger import StageKey
from schemas.records.study import StudyResults
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.runs.lock import RunLock, held_runs, lock_holder
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.studies import TWINS, study_toml

pytestmark = pytest.mark.long

RUNS = ("twins-grpo-s0", "twins-sd-s0")
DEADLINE_S = 120.0


def words(path: Path, workspace: Path) -> list[str]:
    return ["study", str(path), "--workers", "2", "--workspace", str(workspace)]


@contextmanager
def started(path: Path, workspace: Path) -> Iterator[subprocess.Popen[str]]:
    """A study's own process; killed with its workers at the end of the block when it is still there."""
    command = [sys.executable, "-m", "flows.app", *words(path, workspace)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def first_stage_is_done(workspace: Workspace, run: str) -> bool:
    key = StageKey(run=run, iteration=1, stage="sample")
    return Ledger(ArtifactStore(workspace)).done(key) is not None


def outcome(workspace: Workspace) -> dict[str, tuple[str, dict[StageKey, str]]]:
    """What each run came to: the hash of its weights, and of the files of each stage but the timed update."""
    ledger = Ledger(ArtifactStore(workspace))
    return {
        run: (
            ledger.get_run(run).policy_sha256,
            {k: h.done.output_hash for k, h in ledger.histories(run) if k.stage != "update" and h.done is not None},
        )
        for run in RUNS
    }


def num_done_twice(workspace: Workspace) -> int:
    ledger = Ledger(ArtifactStore(workspace))
    attempts = [[a.status for a in history.attempts] for run in RUNS for _, history in ledger.histories(run)]
    return sum("stale" in statuses or statuses.count("done") != 1 for statuses in attempts)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "twins.toml"
    path.write_text(study_toml("twins", TWINS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def serial(path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, dict[StageKey, str]]]:
    workspace = Workspace.open(tmp_path_factory.mktemp("serial"))
    assert run_command(["study", str(path), "--workspace", str(workspace.root)]) == 0
    found = outcome(workspace)
    assert len(found[RUNS[0]][1]) == len(found[RUNS[1]][1]) > 6
    assert found[RUNS[0]][0] != found[RUNS[1]][0]
    return found


@pytest.mark.slow
def test_two_workers_give_the_serial_studys_bits_also_after_the_driver_was_killed(
    path: Path, tmp_path: Path, serial: dict[str, tuple[str, dict[StageKey, str]]]
) -> None:
    workspace = Workspace.open(tmp_path)
    with started(path, tmp_path) as process:
        wait_until(lambda: any(first_stage_is_done(workspace, run) for run in RUNS))
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until(lambda: not held_runs(workspace))
    with started(path, tmp_path) as process:
        said, _ = process.communicate()
        assert process.returncode == 0, said
    lines = said.splitlines()
    for run in RUNS:
        assert sum(f"run {run} done in" in line and "greedy EM" in line for line in lines) == 1
    assert outcome(workspace) == serial
    assert num_done_twice(workspace) == 0
    results = StudyResults.model_validate_json((workspace.study_folder("twins") / "results.json").read_bytes())
    assert all(o.finished for o in results.outcomes)


@pytest.mark.slow
def test_a_killed_worker_is_named_and_the_other_goes_on(
    path: Path, tmp_path: Path, serial: dict[str, tuple[str, dict[StageKey, str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace.open(tmp_path)
    killed, other = RUNS
    with started(path, tmp_path) as process:
        wait_until(lambda: first_stage_is_done(workspace, killed))
        holder = lock_holder(workspace, killed)
        assert holder is not None
        assert holder.pid != process.pid
        os.kill(holder.pid, signal.SIGKILL)
        said, _ = process.communicate()
    assert process.returncode == 2
    assert f"run {killed} failed: its process was killed by SIGKILL" in said
    assert f"run {other} done in" in said
    assert "continue it with: sdsearch study twins" in said
    assert run_command(words(path, tmp_path)) == 0
    said = capsys.readouterr().out
    assert "study run 2/2: SD-Search, seed 0, finished already" in said
    assert f"run {killed} done in" in said
    assert f"run {other} done in" not in said
    assert outcome(workspace) == serial
    assert num_done_twice(workspace) == 0


@pytest.mark.slow
def test_runs_that_begin_alike_are_evaluated_once_at_the_start(
    path: Path, tmp_path: Path, serial: dict[str, tuple[str, dict[StageKey, str]]]
) -> None:
    workspace = Workspace.open(tmp_path)
    storage, (first, second) = Storage(workspace), plan_runs(load_study(str(path), workspace))
    assert runs_alike([first, second], second) == (first.run,)
    train_plain(first.settings, first.run, tmp_path, SilentReporter())
    take_over_start(storage, second.run, runs_alike([first, second], second))
    train_plain(second.settings, second.run, tmp_path, SilentReporter())
    (attempt,) = storage.ledger.history(StageKey(run=second.run, iteration=0, stage="evaluate")).attempts
    assert (attempt.status, attempt.adopted_from) == ("done", first.run)
    assert outcome(workspace) == serial
    rows = storage.database.query("SELECT run, count(*) AS n FROM evaluation_answers WHERE iteration = 0 GROUP BY run")
    assert {row["run"]: row["n"] for row in rows.to_pylist()} == dict.fromkeys(RUNS, 4)
    # What was evaluated with other settings does not count.
    third = second.settings.model_copy(
        update={"rollout": second.settings.rollout.model_copy(update={"temperature": 0.7})}
    )
    take_over_start(storage, "third", [first.run])
    train_plain(third.model_copy(update={"iterations": 1}), "third", tmp_path, SilentReporter())
    statuses = [a.status for a in storage.ledger.history(StageKey(run="third", iteration=0, stage="evaluate")).attempts]
    assert statuses == ["stale", "done"]


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_says_how_to_go_on(path: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    with started(path, tmp_path) as process:
        wait_until(lambda: len(held_runs(workspace)) == 2)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate()
    assert process.returncode == 130
    assert f"interrupted; continue with: sdsearch study {path} --workers 2 --workspace {tmp_path}" in said
    assert not held_runs(workspace)


def test_a_run_that_cannot_be_trained_says_why_in_one_line(path: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    plan = plan_runs(load_study(str(path), workspace))[0]
    order = TrainOrder(run=plan.run, workspace=str(tmp_path), settings_json=plan.settings.model_dump_json(), alike=())
    console = Console(file=io.StringIO(), width=200)
    with RunLock(workspace, plan.run), io.StringIO() as closed, pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.jobs.worker._end_with", lambda stream: None)
        assert carry_out(order, console, closed) == 2
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.startswith(f"error: run '{plan.run}' is held by process {os.getpid()}")
