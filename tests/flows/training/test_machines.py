"""Runs whose ranks are on two machines: here two agents of one machine, which share nothing but workspace and port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore

from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.ranks import join as joining
from flows.training.ranks.join import join
from flows.training.ranks.launch import RankPlace, Ranks, RanksFailedError
from flows.training.ranks.machines import Machines
from flows.training.ranks.messages import BEAT, HOST, LEFT, MACHINES, Machine
from schemas.errors import UserError
from schemas.records.ledger import StageKey
from tests.flows.training.test_ranks import DEADLINE_S, assert_gone, command, ranks_of, sha256, train

pytestmark = pytest.mark.timeout(900)


def free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def of_two(endpoint: str, timeout_s: float = 300) -> list[str]:
    return ["distributed.nodes=2", f"distributed.endpoint={endpoint}", f"distributed.timeout_s={timeout_s}"]


def joined(endpoint: str, workspace: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "flows.app", "join", endpoint, "--workspace", str(workspace), *words]


@contextmanager
def started(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A command that is ended, with all that it started, where a test ends before it."""
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()


def the_error(process: subprocess.Popen[str], code: int = 2) -> str:
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, output
    assert "Traceback" not in output
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    return error


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds run 'two', trained on two ranks of one machine."""
    folder = tmp_path_factory.mktemp("workspace")
    train(folder, "two", 2)
    return folder


@pytest.mark.long
def test_two_agents_give_the_bits_of_one_agent_with_as_many_ranks(workspace: Path) -> None:
    endpoint = f"{HOST}:{free_port()}"
    with (
        started(command(workspace, "agents", 2, *of_two(endpoint))) as run,
        started(joined(endpoint, workspace)) as other,
    ):
        output, _ = run.communicate(timeout=600)
        assert run.returncode == 0, output
        assert f"another machine joins with: sdsearch join {endpoint}" in output
        told, _ = other.communicate(timeout=DEADLINE_S)
        assert other.returncode == 0, told
        assert "joined run agents" in told
        assert "run agents is done with this machine" in told
    assert sha256(workspace, "agents") == sha256(workspace, "two")


def at_work(workspace: Path, run: str, process: subprocess.Popen[str]) -> None:
    """Wait until the second iteration is about to hand its teacher stage to the ranks."""
    ledger = open_storage(workspace).ledger
    while ledger.done(StageKey(run=run, iteration=2, stage="hindsight")) is None:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.parametrize("who", ["rank", "machine"])
def test_a_machine_that_dies_is_one_line_on_both_and_resume_gives_the_same_bits(workspace: Path, who: str) -> None:
    """Its rank alone, or its agent, with which the rank ends."""
    endpoint, run_name = f"{HOST}:{free_port()}", f"lost-{who}"
    with (
        started(command(workspace, run_name, 2, *of_two(endpoint))) as run,
        started(joined(endpoint, workspace)) as other,
    ):
        at_work(workspace, run_name, run)
        ranks = [*ranks_of(run), *(theirs := ranks_of(other))]
        assert len(ranks) == 2
        victim = theirs[0] if who == "rank" else psutil.Process(other.pid)
        victim.kill()
        error = the_error(run)
        assert f"process {victim.pid}" in error
        assert "continue with: sdsearch resume" in error
        if who == "rank":
            assert "ended with signal 9" in error
            assert f"process {victim.pid}" in the_error(other)
        assert_gone(ranks)
    train(workspace, run_name, 2)
    assert sha256(workspace, run_name) == sha256(workspace, "two")


@pytest.mark.long
def test_a_run_that_is_killed_ends_the_machine_that_joined_with_one_line(workspace: Path) -> None:
    endpoint = f"{HOST}:{free_port()}"
    with (
        started(command(workspace, "killed", 2, *of_two(endpoint))) as run,
        started(joined(endpoint, workspace)) as other,
    ):
        at_work(workspace, "killed", run)
        ranks = [*ranks_of(run), *ranks_of(other)]
        run.send_signal(signal.SIGKILL)
        assert f"its process at {endpoint} is gone; resume the run there, then join it again" in the_error(other)
        assert_gone(ranks)


@pytest.mark.long
def test_a_machine_that_never_comes_is_one_line(tmp_path: Path) -> None:
    endpoint = f"{HOST}:{free_port()}"
    with started(command(tmp_path, "alone", 2, *of_two(endpoint, 3))) as run:
        error = the_error(run)
    assert "1 of 2 machines are there after 3 s (distributed.timeout_s)" in error
    assert f"sdsearch join {endpoint} --workspace {tmp_path}" in error


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[Ranks, str]]:
    """A run of this process that waits for another machine; its lock is not held."""
    endpoint = f"{HOST}:{free_port()}"
    settings = load_settings("tiny", ["distributed.ranks=2", *of_two(endpoint, 5)])
    ranks = Ranks(settings, RankPlace(tmp_path, "r", None), lambda *_: None)
    ranks.listen()
    yield ranks, endpoint
    ranks.stop("the test is over")


def test_another_workspace_is_refused(listening: tuple[Ranks, str], tmp_path: Path) -> None:
    ranks, endpoint = listening
    assert ranks._store is not None
    ranks._store.add(MACHINES, 1)  # It has all its machines: one that gets past the workspace is not kept either.
    with pytest.raises(UserError, match=r"is not the workspace of run 'r' on .*--workspace"):
        join(endpoint, tmp_path / "elsewhere", 5, print)


def test_another_program_is_refused(
    listening: tuple[Ranks, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, endpoint = listening
    own = joining.this_program(load_settings("tiny"))
    monkeypatch.setattr(joining, "this_program", lambda settings: own.model_copy(update={"torch": "9.9"}))
    with pytest.raises(UserError, match=r"runs another program .*its torch is 9\.9"):
        join(endpoint, tmp_path, 5, print)


def test_a_run_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run is at 127\.0\.0\.1:\d+ after 0 s .*--wait"):
        join(f"{HOST}:{free_port()}", tmp_path, 0.2, print)
    with pytest.raises(UserError, match="ENDPOINT is 'here', and is HOST:PORT"):
        join("here", tmp_path, 0.2, print)


def test_a_port_that_is_taken_is_one_line(listening: tuple[Ranks, str], tmp_path: Path) -> None:
    _, endpoint = listening
    settings = load_settings("tiny", ["distributed.ranks=2", *of_two(endpoint)])
    with pytest.raises(RanksFailedError, match=rf"no port {endpoint.rpartition(':')[2]} on") as told:
        Ranks(settings, RankPlace(tmp_path, "r", None), lambda *_: None).listen()
    assert "\n" not in str(told.value)


@pytest.fixture
def store() -> TCPStore:
    return TCPStore(HOST, 0, is_master=True, wait_for_workers=False)


def machine(store: TCPStore, number: int) -> None:
    store.add(MACHINES, 1)
    store.set(f"{MACHINES}/{number}", Machine(host=f"node{number}", pid=os.getpid()).model_dump_json())


def test_ranks_start_once_all_machines_are_there(store: TCPStore) -> None:
    machines = Machines(store, 2, 0.3)
    machine(store, 0)
    assert not machines.wait()
    assert machines.num_joined == 1
    machine(store, 1)
    assert machines.wait()
    assert machines.gone() is None


def test_a_machine_without_a_sign_of_life_is_named_and_one_that_beats_is_not(store: TCPStore) -> None:
    machines = Machines(store, 2, 60.0)
    for number in (0, 1):
        machine(store, number)
    while (why := machines.gone(0.5)) is None:
        store.add(f"{BEAT}/0", 1)
    assert why.startswith("machine node1 ")


def test_why_a_machine_left_is_told_but_not_that_its_work_was_done(store: TCPStore) -> None:
    machines = Machines(store, 2, 60.0)
    for number in (0, 1):
        machine(store, number)
    store.set(f"{LEFT}/0", "")
    assert machines.gone() is None
    store.set(f"{LEFT}/1", "rank 3 ended with signal 9")
    assert machines.cause() == machines.gone() == "rank 3 ended with signal 9"


def test_a_run_on_one_machine_waits_for_nobody(store: TCPStore) -> None:
    alone = Machines(store, 0, 60.0)
    assert alone.wait()
    assert (alone.gone(), alone.cause(), alone.num_joined) == (None, None, 0)
    alone.dismiss("")
