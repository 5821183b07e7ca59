"""Whatever ends a run's ranks: one line in bounded time, no process left, and resume gives the uninterrupted bits."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from flows.settings.load import load_settings
from flows.training.ranks import launch, serve
from flows.training.ranks.agent import first_failure
from flows.training.ranks.attendance import Attendance, failures_of, let_others_speak, sign_in
from flows.training.ranks.launch import RankPlace, Ranks, RanksFailedError
from flows.training.ranks.messages import DONE, ERROR, HOST, Failure, Program
from flows.training.ranks.processes import StopWatch, rank_processes
from flows.training.ranks.program import check_program, this_program
from schemas.errors import UserError
from schemas.records.ledger import StageKey
from schemas.settings.distributed import DistributedSettings
from tests.flows.training.test_ranks import (
    DEADLINE_S,
    assert_gone,
    command,
    open_storage,
    sha256,
    started,
    train,
)

pytestmark = pytest.mark.timeout(900)
SETTINGS = load_settings("tiny", ["distributed.ranks=2"])
SLEEPER = "import time; print('ready', flush=True); time.sleep(60)"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds run 'two', trained on two ranks."""
    folder = tmp_path_factory.mktemp("workspace")
    train(folder, "two", 2)
    return folder


def test_a_port_that_is_taken_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr(launch, "TCPStore", lambda host, port, **options: TCPStore(host, taken.port, **options))
    ranks = Ranks(SETTINGS, RankPlace(tmp_path, "r", None), lambda *_: None)
    with pytest.raises(RanksFailedError, match=r"no port on 127\.0\.0\.1 .*; continue with: sdsearch resume r") as told:
        ranks.do("teach", [])
    assert "\n" not in str(told.value)
    ranks.close()


def test_a_rank_with_another_torch_or_other_code_is_refused() -> None:
    own = this_program(SETTINGS)
    check_program("rank 1", own, own)
    assert "sdsearch/training/update.py" in own.sources
    with pytest.raises(UserError, match=r"rank 1 runs another program .*its torch is .*, the run's is 9\.9"):
        check_program("rank 1", own, own.model_copy(update={"torch": "9.9"}))
    other = Program(torch=own.torch, sources={**own.sources, "sdsearch/training/update.py": "0"})
    with pytest.raises(UserError, match=r"sdsearch/training/update\.py changed since the run began"):
        check_program("rank 1", own, other)


def test_a_rank_that_was_killed_is_named_before_those_that_lost_it(tmp_path: Path) -> None:
    """The agent may find several ended at once, in any order."""
    ends = {number: ProcessFailure(number, 100 + number, code, str(tmp_path)) for number, code in ((0, 1), (1, -9))}
    assert first_failure(ChildFailedError("ranks", ends))[0] == 1
    ends[2] = ProcessFailure(2, 102, -6, str(tmp_path))  # gloo's abort where the other end is gone.
    assert first_failure(ChildFailedError("ranks", dict(reversed(ends.items()))))[0] == 1
    del ends[1]
    assert first_failure(ChildFailedError("ranks", ends))[0] == 2
    stopped = {number: ProcessFailure(number, 100 + number, code, str(tmp_path)) for number, code in ((0, -15), (1, 3))}
    assert first_failure(ChildFailedError("ranks", stopped))[0] == 1, "the agent stops the others with SIGTERM"


def test_a_stopped_rank_is_noticed_and_one_that_goes_on_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.training.ranks.processes._LOOK_S", 0.0)
    arguments = [sys.executable, "-c", SLEEPER, "flows.training.ranks.rank", "here:4711"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env={**os.environ, "RANK": "1"}) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert [child.pid for child in rank_processes("here:4711")] == [process.pid]
        watch = StopWatch("here:4711")
        assert watch.longest() is None
        process.send_signal(signal.SIGSTOP)
        while (found := watch.longest()) is None:
            time.sleep(0.01)
        assert (found.number, found.pid) == (1, process.pid)
        process.send_signal(signal.SIGCONT)
        while watch.longest() is not None:
            time.sleep(0.01)
        process.kill()


def run_with(workspace: Path, run: str, folder: Path, site: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Train on two ranks, of which the second one runs `site` as it starts."""
    (folder / "sitecustomize.py").write_text(f"import os\nif os.environ.get('RANK') == '1':\n    {site}\n")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        command(workspace, run, 2, *overrides),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=300,
    )


def the_error(output: str) -> str:
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in output
    return error


@pytest.mark.long
@pytest.mark.parametrize(
    ("site", "words"),
    [
        ("os.write(2, b'no such library\\n'); os._exit(3)", "rank 1 of 2 .* exit code 3: no such library"),
        ("import torch; torch.__version__ = '9.9'", "rank 1 runs another program .*its torch is 9.9"),
        (
            "import torch.distributed as d; d.init_process_group = lambda *a, **k: bytearray(1 << 60)",
            "rank 1 of 2 .*MemoryError.*out of memory: lower update.max_tokens_per_microbatch",
        ),
    ],
    ids=["cannot-start", "other-torch", "no-memory"],
)
def test_a_rank_that_cannot_work_is_one_line_and_resume_gives_the_same_bits(
    workspace: Path, tmp_path: Path, site: str, words: str, request: pytest.FixtureRequest
) -> None:
    run = request.node.callspec.id
    ended = run_with(workspace, run, tmp_path, site)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert re.search(words, the_error(ended.stdout + ended.stderr))
    train(workspace, run, 2)
    assert sha256(workspace, run) == sha256(workspace, "two")


SILENT = "import signal, time, torch; torch.optim.AdamW.step = lambda *_, **__: {}"


@pytest.mark.long
@pytest.mark.parametrize(
    ("site", "words"),
    [
        (
            SILENT.format("time.sleep(86400)"),
            r"^error: rank 0 waited for rank 1 \(process \d+\) of 2 in vain, for 60 s",
        ),
        (
            SILENT.format("os.kill(os.getpid(), signal.SIGSTOP)"),
            r"^error: rank 1 of 2 \(process \d+\) has been stopped \(SIGSTOP\) for \d+ s",
        ),
        (
            "import time; time.sleep(86400)",
            r"^error: rank 1 \(process \d+\) of 2 has not started after 60 s \(distributed\.timeout_s\)",
        ),
    ],
    ids=["hangs", "stopped", "hangs-as-it-starts"],
)
def test_a_rank_that_is_silent_is_named_and_resume_gives_the_same_bits(
    workspace: Path, tmp_path: Path, site: str, words: str, request: pytest.FixtureRequest
) -> None:
    """In its update, as it takes the first step, or before it has joined the other one."""
    run = f"silent-{request.node.callspec.id}"
    ended = run_with(workspace, run, tmp_path, site, "distributed.timeout_s=60")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert re.search(words, error := the_error(ended.stdout + ended.stderr)), error
    assert "continue with: sdsearch resume" in error
    left = [process.pid for process in psutil.process_iter(["cmdline"]) if run in (process.info["cmdline"] or [])]
    assert not left, "no rank outlives the run"
    resumed = [sys.executable, "-m", "flows.app", "resume", run, "--workspace", str(workspace), "--no-prefect"]
    done = subprocess.run(resumed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sha256(workspace, run) == sha256(workspace, "two")


Attended = tuple[TCPStore, Callable[[float], Attendance]]


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> Attended:
    """A store, and what notices silent ranks of four after a time-out."""
    monkeypatch.setattr("flows.training.ranks.attendance._LOOK_S", 0.0)
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    return store, lambda timeout_s: Attendance(store, DistributedSettings(ranks=4, timeout_s=timeout_s))


def until_told(attendance: Attendance, number: int) -> str:
    while (told := attendance.late(number, "here:4711")) is None:
        time.sleep(0.001)
    return told


def test_ranks_that_do_not_start_are_named_after_the_time_out(attended: Attended) -> None:
    store, attendance_of = attended
    for number in (0, 2):
        sign_in(store, number)
    assert attendance_of(3600).late(0, "here:4711") is None
    assert until_told(attendance_of(0.01), 0) == "ranks 1, 3 of 4 have not started after 0.01 s (distributed.timeout_s)"
    for number in (1, 3):
        sign_in(store, number)
    assert attendance_of(0.01).late(0, "here:4711") is None
    assert attendance_of(0.01).late(0, "here:4711") is None


def test_a_rank_that_does_not_finish_is_named_once_another_has(attended: Attended) -> None:
    """A first rank that hangs after the last step: no other rank waits for it."""
    store, attendance_of = attended
    attendance = attendance_of(0.01)
    for number in range(4):
        sign_in(store, number)
    assert attendance.late(0, "here:4711") is None
    assert attendance.late(0, "here:4711") is None
    time.sleep(0.02)
    assert attendance.late(0, "here:4711") is None, "all are at work"
    for number in (1, 2, 3):
        store.set(f"{DONE}/0/{number}", "")
    own = f"rank 0 (process {os.getpid()}) of 4 has not done what the other ranks have done, after 0.01 s"
    assert until_told(attendance, 0).startswith(own)
    assert attendance.late(1, "here:4711") is None, "nobody has done the next command"
    store.set(f"{DONE}/0/0", "")
    assert attendance.late(0, "here:4711") is None


def test_the_ranks_that_said_nothing_are_those_that_were_waited_for(attended: Attended) -> None:
    store, attendance_of = attended
    sign_in(store, 1)
    waited = Failure(text="Timed out waiting", is_for_people=False, waited=True)
    lost = waited.model_copy(update={"waited": False})
    told = attendance_of(20).silent({0: waited, 2: lost, 3: waited})
    assert told == f"2 ranks waited for rank 1 (process {os.getpid()}) of 4 in vain, for 20 s (distributed.timeout_s)"
    assert attendance_of(20).silent({0: lost, 2: lost}) is None, "their connections were closed: one has ended"
    assert attendance_of(20).silent(dict.fromkeys(range(4), waited)) is None


def test_a_rank_that_waited_lets_the_others_say_so_first(attended: Attended, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = attended
    failure = Failure(text="Timed out waiting", is_for_people=False, waited=True).model_dump_json()
    monkeypatch.setattr("flows.training.ranks.attendance._GRACE_S", 0.01)
    store.set(f"{ERROR}/0", failure)
    let_others_speak(store, 4)
    assert set(failures_of(store, 4)) == {0}, "they have seconds for it"
    monkeypatch.setattr("flows.training.ranks.attendance._GRACE_S", 250.0)
    store.set(f"{ERROR}/2", failure)
    threading.Timer(0.2, lambda: store.set(f"{ERROR}/3", failure)).start()
    let_others_speak(store, 4)
    assert set(failures_of(store, 4)) == {0, 2, 3}, "the fourth one is who was waited for"


@pytest.mark.parametrize(
    ("error", "waited", "of_others"),
    [
        (RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv"), True, True),
        (RuntimeError("Wait timeout"), True, True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"), False, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (UserError("step 3 timed out waiting"), False, False),
    ],
)
def test_what_a_rank_says_of_others(error: Exception, waited: bool, of_others: bool) -> None:
    assert serve._failure(error).waited is waited
    assert serve._is_of_others(error) is of_others


def in_teacher(process: subprocess.Popen[str], workspace: Path, run: str) -> None:
    """Wait until the run's second iteration is about to hand its teacher stage to the ranks."""
    ledger = open_storage(workspace).ledger
    while ledger.done(StageKey(run=run, iteration=2, stage="hindsight")) is None:
        assert process.poll() is None
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.parametrize("numbers", [(1,), (0, 1)])
def test_stopped_ranks_are_one_line_in_bounded_time(workspace: Path, numbers: tuple[int, ...]) -> None:
    """Also where all are stopped, so that none of them can give up the others."""
    run = f"stopped-{len(numbers)}"
    with started(command(workspace, run, 2, "distributed.timeout_s=60")) as (process, ranks):
        by_number = {int(rank.environ()["RANK"]): rank for rank in ranks}
        in_teacher(process, workspace, run)
        for number in numbers:
            by_number[number].suspend()
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 2, output
        assert f"rank {numbers[0]} of 2 (process {by_number[numbers[0]].pid}) has been stopped" in the_error(output)
        assert_gone(ranks)
    train(workspace, run, 2)
    assert sha256(workspace, run) == sha256(workspace, "two")


@pytest.mark.long
def test_a_rank_whose_allocations_fail_is_one_line(workspace: Path) -> None:
    """Its data may not grow any more from the second iteration's teacher on."""
    run = "allocations"
    with started(command(workspace, run, 2)) as (process, ranks):
        by_number = {int(rank.environ()["RANK"]): rank for rank in ranks}
        in_teacher(process, workspace, run)
        by_number[1].rlimit(psutil.RLIMIT_DATA, (1 << 20, 1 << 20))
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 2, output
        assert "of 2 (process" in the_error(output)
        assert_gone(ranks)
    train(workspace, run, 2)
    assert sha256(workspace, run) == sha256(workspace, "two")
