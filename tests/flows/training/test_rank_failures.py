"""Whatever ends a run's ranks: one line in bounded time, no process left, and resume gives the uninterrupted bits."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from flows.settings.load import load_settings
from flows.training.ranks import launch
from flows.training.ranks.agent import first_failure
from flows.training.ranks.launch import RankPlace, Ranks, RanksFailedError
from flows.training.ranks.messages import HOST, Program
from flows.training.ranks.processes import StopWatch, rank_processes
from flows.training.ranks.program import check_program, this_program
from schemas.errors import UserError
from schemas.records.ledger import StageKey
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


def run_with(workspace: Path, run: str, folder: Path, site: str) -> subprocess.CompletedProcess[str]:
    """Train on two ranks, of which the second one runs `site` as it starts."""
    (folder / "sitecustomize.py").write_text(f"import os\nif os.environ.get('RANK') == '1':\n    {site}\n")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        command(workspace, run, 2), capture_output=True, text=True, check=False, env=environment, timeout=300
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
    with started(command(workspace, run, 2)) as (process, ranks):
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
