"""Whole iterations through a real engine; a swap that is withheld; a trainer that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import flows.run.sampler
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain
from sdsearch.sampling.vllm_engine import VllmEngine
from sdsearch.sampling.vllm_turns import SamplerError
from tests.vllm.conftest import Bench

OVERRIDES = [
    "sampling.kind=vllm",
    "sampling.enforce_eager=true",
    "sampling.kv_cache_gb=0.25",
    "sampling.max_num_seqs=64",
    "sampling.max_model_len=512",
    "sampling.probe_tolerance=1e-4",
    "iterations=2",
    "data.questions_per_iteration=3",
    "evaluation.num_questions=4",
    "model.torch_threads=1",
]
SETTINGS = load_settings("tiny", OVERRIDES)


@pytest.fixture
def shared(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The tests' engine stands in for the one that a run would start."""

    async def close(self: VllmEngine) -> None:
        return None

    monkeypatch.setattr(flows.run.sampler.VllmEngine, "open", staticmethod(lambda options, loop: bench.engine))
    monkeypatch.setattr(flows.run.sampler, "EventLoopThread", lambda: bench.loop)
    monkeypatch.setattr(VllmEngine, "close", close)
    monkeypatch.setattr(bench.loop, "close", lambda: None)
    return bench


def query(workspace: Path, sql: str) -> list[dict]:
    return open_storage(workspace).database.query(sql).to_pylist()


def test_two_iterations_with_full_weights(shared: Bench, tmp_path: Path) -> None:
    train_plain(SETTINGS, "full", tmp_path, SilentReporter())
    updates = query(tmp_path, "SELECT * FROM v_updates ORDER BY iteration")
    assert [row["iteration"] for row in updates] == [1, 2]
    for row in updates:
        assert row["num_missing_logprobs"] == 0
        assert row["sampler_max_difference"] < 1e-4
        assert abs(row["sampler_kl_first_step"]) < 1e-6
    reports = query(tmp_path, "SELECT * FROM v_sampling ORDER BY iteration, stage")
    assert [(row["iteration"], row["stage"]) for row in reports] == [
        (0, "evaluate"),
        (1, "sample"),
        (2, "evaluate"),
        (2, "sample"),
    ]
    for row in reports:
        assert row["sampler"] == "vllm"
        assert row["probe_max_difference"] < 1e-4
        assert row["num_sampled_tokens"] > 0
        assert row["seconds"] >= row["stalled_s"] >= 0
        print({name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()})
    tokens = query(tmp_path, "SELECT sum(len(token_ids)) AS n FROM turns WHERE iteration = 1")[0]["n"]
    assert tokens == reports[1]["num_sampled_tokens"]


def test_a_swap_that_is_withheld_stops_the_run_before_anything_is_sampled(
    shared: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = VllmEngine.load

    async def withhold(self: VllmEngine, weights: object) -> None:
        if weights.version == 0:
            await load(self, weights)

    with monkeypatch.context() as patch:
        patch.setattr(VllmEngine, "load", withhold)
        with pytest.raises(SamplerError, match="does not sample from policy version 1"):
            train_plain(SETTINGS, "stale", tmp_path, SilentReporter())
    (failed,) = query(tmp_path, "SELECT * FROM stages WHERE iteration = 2")
    assert (failed["stage"], failed["status"]) == ("sample", "failed")
    train_plain(None, "stale", tmp_path, SilentReporter(), resume=True)
    assert query(tmp_path, "SELECT status FROM runs") == [{"status": "done"}]


def test_the_engine_ends_with_a_trainer_that_is_killed_and_the_run_goes_on(shared: Bench, tmp_path: Path) -> None:
    words = [part for override in OVERRIDES for part in ("--set", override)]
    command = [sys.executable, "-m", "flows.app", "train", "tiny", "--run", "killed", "--no-prefect", *words]
    environment = {**os.environ, "SDSEARCH_HOME": str(tmp_path)}
    with (tmp_path / "output").open("w") as output:
        trainer = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        first_update = tmp_path / "checkpoints" / "run=killed" / "version=00001"
        wait_until(lambda: first_update.exists() or trainer.poll() is not None, 900)
        assert trainer.poll() is None, (tmp_path / "output").read_text()
        started = psutil.Process(trainer.pid).children(recursive=True)
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    assert len(started) >= 2, "the engine has processes of its own"
    wait_until(lambda: not any(alive(process) for process in started), 60)
    train_plain(None, "killed", tmp_path, SilentReporter(), resume=True)
    assert query(tmp_path, "SELECT status, policy_version FROM runs") == [{"status": "done", "policy_version": 2}]


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_until(condition: object, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.2)
