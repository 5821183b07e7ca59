"""Runs whose teacher and update stages several ranks do: the same policy but for rounding, and whatever ends them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from torch import Tensor

from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.trainer import InProcessTrainer, open_trainer
from schemas.records.ledger import StageKey
from storage.disk.tensors import load_tensors

QUICK = ("iterations=2", "evaluation.num_questions=2", "data.questions_per_iteration=2", "model.torch_threads=1")
DEADLINE_S = 120.0
pytestmark = pytest.mark.timeout(900)


def command(workspace: Path, run: str, ranks: int, *overrides: str) -> list[str]:
    settings = [*QUICK, "distributed.timeout_s=120", f"distributed.ranks={ranks}", *overrides]
    given = [word for override in settings for word in ("--set", override)]
    train = [sys.executable, "-m", "flows.app", "train", "tiny", "--no-prefect"]
    return [*train, "--run", run, "--workspace", str(workspace), *given]


def train(workspace: Path, run: str, ranks: int, *overrides: str) -> None:
    done = subprocess.run(command(workspace, run, ranks, *overrides), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def policy(workspace: Path, run: str, version: int = 2) -> dict[str, Tensor]:
    return load_tensors(open_storage(workspace).checkpoints.verify(run, version) / "model.safetensors")


def sha256(workspace: Path, run: str) -> str:
    return open_storage(workspace).ledger.get_run(run).policy_sha256


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    squares = [float((tensor - other[name]).double().square().sum()) for name, tensor in one.items()]
    return (sum(squares) / sum(float(tensor.double().square().sum()) for tensor in one.values())) ** 0.5


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "flows.training.ranks.rank" in child.cmdline()]
    except psutil.Error:
        return []


@contextmanager
def started(arguments: list[str]) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A run and its two ranks, which have just been started."""
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while len(found := ranks_of(process)) < 2:
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            time.sleep(0.05)
        yield process, found


def assert_gone(ranks: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(ranks, timeout=DEADLINE_S)
    assert not alive


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds run 'two', trained on two ranks."""
    folder = tmp_path_factory.mktemp("workspace")
    train(folder, "two", 2)
    return folder


def test_one_rank_is_the_process_itself(tmp_path: Path) -> None:
    class Live:
        settings = load_settings("tiny")

    assert isinstance(open_trainer(Live(), None), InProcessTrainer)  # type: ignore[arg-type]
    loaded = "import sys, flows.training.loop; print('torch.distributed.launcher' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False", "the launcher is loaded for ranks alone"


@pytest.mark.long
def test_two_ranks_train_what_one_process_does(workspace: Path) -> None:
    train(workspace, "one", 1)
    assert 0 < distance(policy(workspace, "one"), policy(workspace, "two")) < 1e-5
    storage = open_storage(workspace)
    query = "SELECT DISTINCT stage, num_ranks FROM stages WHERE run = $run AND num_ranks > 1 ORDER BY stage"
    found = {run: storage.database.query(query, {"run": run}).to_pylist() for run in ("one", "two")}
    assert found == {"one": [], "two": [{"stage": name, "num_ranks": 2} for name in ("teacher", "update")]}
    waiting = storage.database.query("SELECT run, waiting_share FROM update_metrics").to_pylist()
    assert all((row["waiting_share"] is None) == (row["run"] == "one") for row in waiting)


@pytest.mark.long
def test_the_same_ranks_give_the_same_bits(workspace: Path) -> None:
    train(workspace, "again", 2)
    assert sha256(workspace, "again") == sha256(workspace, "two")


@pytest.mark.long
def test_a_run_goes_on_with_other_ranks(workspace: Path) -> None:
    """2 -> 4 -> 1: each time the last update is taken again, from what the ranks before stored."""
    train(workspace, "stay", 2)
    checkpoints = open_storage(workspace).checkpoints
    for ranks in (4, 1):
        checkpoints.prune("stay", keep=[1])
        train(workspace, "stay", ranks)
        assert distance(policy(workspace, "two"), policy(workspace, "stay")) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("at_work", [False, True])
def test_a_killed_rank_is_one_line_and_resume_gives_the_same_bits(workspace: Path, number: int, at_work: bool) -> None:
    """While it starts, or in the second iteration's teacher or update."""
    run = f"killed-{number}-{at_work}"
    with started(command(workspace, run, 2)) as (process, ranks):
        ledger = open_storage(workspace).ledger
        while at_work and ledger.done(StageKey(run=run, iteration=2, stage="hindsight")) is None:
            assert process.poll() is None
            time.sleep(0.01)
        ranks[number].kill()
        output, _ = process.communicate(timeout=DEADLINE_S)
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert process.returncode == 2, output
        assert len(errors) == 1
        assert f"rank {number} of 2" in errors[0]
        assert "ended with signal 9" in errors[0]
        assert "continue with: sdsearch resume" in errors[0]
        assert "Traceback" not in output
        assert_gone(ranks)
    train(workspace, run, 2)
    assert sha256(workspace, run) == sha256(workspace, "two")


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ranks_end_with_the_run_and_resume_gives_the_same_bits(workspace: Path, number: int, code: int) -> None:
    run = f"ended-{code}"
    with started(command(workspace, run, 2)) as (process, ranks):
        time.sleep(2.0)
        process.send_signal(number)
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == code, output
        assert_gone(ranks)
    train(workspace, run, 2)
    assert sha256(workspace, run) == sha256(workspace, "two")


@pytest.mark.long
@pytest.mark.parametrize("changes", [("model.tuning=lora",), ("model.dtype=bfloat16",)])
def test_adapters_and_masters_are_resumed_by_another_number(workspace: Path, changes: tuple[str, ...]) -> None:
    """What two ranks stored a single process goes on from, and the other way round."""
    run = changes[0].partition("=")[2]
    train(workspace, run, 2, *changes)
    storage = open_storage(workspace)
    folder = storage.checkpoints.path(run, 2)
    weights = "adapter_model.safetensors" if run == "lora" else "model.safetensors"
    kept, kept_files = stored(folder, weights)
    storage.checkpoints.prune(run, keep=[1])
    train(workspace, run, 1, *changes)
    again, files = stored(folder, weights)
    assert files == kept_files
    assert again == kept


def stored(folder: Path, weights: str) -> tuple[dict[str, object], set[str]]:
    """The type and shape of each tensor of a checkpoint, and the names of its other files."""
    tensors = load_tensors(folder / weights) | load_tensors(folder / "optimiser" / "state.safetensors")
    others = {path.name for path in folder.rglob("*") if path.is_file() and "safetensors" not in path.name}
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}, others
