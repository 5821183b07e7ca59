"""An evaluation over processes: the same bits as in one, whoever is killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from flows.app import run_command
from flows.console.errors import UserError
from flows.evaluation.share import answer_share, check_workers, shares
from flows.evaluation.stage import Batch
from flows.jobs.orders import AnswerOrder
from flows.run.records import new_run
from flows.settings.load import load_settings
from flows.training.job import open_storage
from schemas.records.ledger import StageKey
from schemas.records.run_kind import EvaluationKind, TrainingKind
from schemas.settings.root import Settings
from sdsearch.evaluation.answering import Asking
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.storage import Storage
from storage.workspace import Workspace

DEADLINE_S = 200.0
KEY = StageKey(run="e", iteration=0, stage="evaluate")


def words(workspace: Path, *options: str) -> list[str]:
    """Two sets of 48 questions in batches of four."""
    asked = ["--datasets", "world:dev,world:test", "--num-questions", "48", "--set", "rollout.questions_per_batch=1"]
    settings = ["--config", "tiny", "--set", "model.torch_threads=1"]
    return ["evaluate", *settings, *asked, "--name", "e", "--workspace", str(workspace), *options]


def outputs(workspace: Path) -> dict[str, str]:
    """The hash of each file of the evaluation."""
    done = Ledger(ArtifactStore(Workspace(workspace))).done(KEY)
    assert done is not None
    return {ref.path: ref.sha256 for ref in done.outputs}


def pieces(workspace: Path) -> list[Path]:
    return [path for path in workspace.rglob("partial-*.parquet") if "-searches" not in path.name]


@contextmanager
def started(workspace: Path, given: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """The process that evaluates, or does what is given; killed at the end of the block when it is still there."""
    command = [sys.executable, "-m", "flows.app", *(given or words(workspace, "--workers", "2"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def await_pieces(workspace: Path, number: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while len(pieces(workspace)) < number:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [one for one in psutil.Process(process.pid).children() if "flows.jobs.worker" in one.cmdline()]


def test_batches_are_dealt_in_turn() -> None:
    batches = [Batch(str(n), "answers", (), Asking("greedy", 1.0, 0, 0)) for n in range(5)]
    assert [[b.name for b in share] for share in shares(batches, 2)] == [["0", "2", "4"], ["1", "3"]]
    assert [[b.name for b in share] for share in shares(batches[:1], 2)] == [["0"]]
    assert shares([], 2) == []


def test_an_engine_is_not_shared_by_workers() -> None:
    settings = load_settings("tiny", ["sampling.kind=vllm_server", 'sampling.urls=["http://localhost:8000"]'])
    check_workers(settings, 1)
    with pytest.raises(UserError, match=r"--workers 2: sampling.kind = 'vllm_server' answers many questions"):
        check_workers(settings, 2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    assert run_command(words(folder)) == 0
    written = {Path(path).name for path in outputs(folder)}
    assert written == {"answers_greedy.parquet", "answers_greedy_1.parquet", "reports.parquet", "conditions.parquet"}
    return folder


@pytest.mark.parametrize(("given", "num_workers"), [(["--workers", "3"], 3), ([], 1)])
def test_resume_takes_the_number_of_an_evaluations_workers(
    given: list[str], num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    kind = EvaluationKind(source=None, version=0)
    open_storage(tmp_path).create_run(new_run("e", load_settings("tiny"), kind))
    monkeypatch.setattr(
        "flows.resume.continue_evaluation", lambda plan, workspace, console, number: asked.append(number)
    )
    assert run_command(["resume", "e", *given, "--workspace", str(tmp_path)]) == 0
    assert asked == [num_workers]


def test_workers_of_another_run_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_storage(tmp_path).create_run(new_run("r", load_settings("tiny"), TrainingKind()))
    assert run_command(["resume", "r", "--workers", "2", "--workspace", str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "error: --workers 2 is for evaluations, and run 'r' is a run that trains; leave --workers out" in said


@pytest.mark.long
def test_two_workers_give_the_bits_of_one_process_and_count_its_searches(alone: Path, tmp_path: Path) -> None:
    assert run_command(words(tmp_path, "--workers", "2")) == 0
    assert outputs(tmp_path) == outputs(alone)
    done, serial = (Ledger(ArtifactStore(Workspace(folder))).done(KEY) for folder in (tmp_path, alone))
    assert done is not None
    assert serial is not None
    assert done.retrieval is not None
    assert serial.retrieval is not None
    assert done.retrieval.num_queries == serial.retrieval.num_queries > 0
    assert not list(tmp_path.rglob("partial-*"))


@pytest.mark.long
@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_what_was_answered_before_a_kill_is_kept(alone: Path, tmp_path: Path, victim: str) -> None:
    with started(tmp_path) as process:
        await_pieces(tmp_path, 3, process)
        workers = workers_of(process)
        assert len(workers) == 2
        os.kill(process.pid if victim == "driver" else workers[0].pid, signal.SIGKILL)
        said, _ = process.communicate()
    _gone, alive = psutil.wait_procs(workers, timeout=DEADLINE_S)
    assert not alive, "workers end with the evaluation's process"
    if victim == "worker":
        assert process.returncode == 2
        assert "1 of 2 workers failed: its process was killed by SIGKILL" in said
        assert f"continue with: sdsearch resume e --workers 2 --workspace {tmp_path}" in said
    kept = {path.name: path.stat().st_mtime_ns for path in pieces(tmp_path)}
    assert len(kept) >= 3
    with started(tmp_path, ["resume", "e", "--workers", "2", "--workspace", str(tmp_path)]) as process:
        await_pieces(tmp_path, len(kept) + 1, process)
        assert {path.name: path.stat().st_mtime_ns for path in pieces(tmp_path)}.items() >= kept.items()
        said, _ = process.communicate()
        assert process.returncode == 0, said
    assert outputs(tmp_path) == outputs(alone)
    attempts = Ledger(ArtifactStore(Workspace(tmp_path))).history(KEY).attempts
    assert [attempt.status for attempt in attempts][-1] == "done"
    assert len(attempts) == 2


@pytest.mark.long
def test_a_worker_with_other_inputs_refuses(alone: Path) -> None:
    storage = Storage(Workspace(alone))
    done = storage.ledger.done(KEY)
    assert done is not None
    settings = Settings.model_validate_json(storage.ledger.get_run("e").settings_json)
    order = AnswerOrder(
        source=None,
        attempt=done.model_copy(update={"input_hash": "0" * 64}),
        batches=("greedy-0-000000",),
        workspace=str(alone),
        settings_json=settings.model_dump_json(),
    )
    with pytest.raises(UserError, match="would answer with another program"):
        answer_share(order, settings, storage)
    assert not list(alone.rglob("partial-*"))
