"""Studies on a work pool of a person's own: a real server, `prefect deploy --all`, a process worker that dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from flows.app import run_command
from schemas.records.ledger import StageKey
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.runs.lock import held_runs
from storage.workspace import Workspace
from tests.e2e.test_prefect import DEADLINE_S, HTTP, PREFECT, SDSEARCH, await_text, flow_runs, processes_of, run, start
from tests.support.studies import TWINS, study_toml

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

RUNS = ("twins-grpo-s0", "twins-sd-s0")
POOL = "gym"


class Pooled(NamedTuple):
    """A server with a process pool to which the flows of a workspace are deployed."""

    home: Path
    url: str
    workspace: Path
    study: Path

    def study_command(self, *words: str) -> list[str]:
        return [*SDSEARCH, "study", str(self.study), *words, "--workspace", str(self.workspace)]

    def worker(self, log: Path, limit: int = 1) -> subprocess.Popen[bytes]:
        command = [*PREFECT, "worker", "start", "--pool", POOL, "--limit", str(limit)]
        return start(command, log, self.home, PREFECT_API_URL=self.url, PREFECT_WORKER_QUERY_SECONDS="1")


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def kill_all(home: Path, word: str) -> None:
    """Kill -9 the processes of this PREFECT_HOME whose command line has a word."""
    for pid, command in processes_of(home).items():
        if word in command:
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooled]:
    folder = tmp_path_factory.mktemp("pooled")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = Pooled(folder / "prefect", f"http://127.0.0.1:{port}/api", folder / "workspace", folder / "twins.toml")
    found.study.write_text(study_toml("twins", TWINS), encoding="utf-8")
    log = folder / "server"
    server = start([*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)], log, found.home)
    try:
        await_text(log, f"http://127.0.0.1:{port}", server)
        wait_until(lambda: is_healthy(found.url))
        yield found
    finally:
        kill_all(found.home, "prefect")
        server.wait()


def is_healthy(url: str) -> bool:
    try:
        return HTTP.get(f"{url}/health").status_code == 200
    except Exception:  # It is only starting.
        return False


def outcome(workspace: Path) -> dict[str, tuple[str, dict[StageKey, str]]]:
    """What each run came to: the hash of its weights, and of the files of each stage but the timed update."""
    ledger = Ledger(ArtifactStore(Workspace(workspace)))
    return {
        run: (
            ledger.get_run(run).policy_sha256,
            {k: h.done.output_hash for k, h in ledger.histories(run) if k.stage != "update" and h.done is not None},
        )
        for run in RUNS
    }


def test_what_is_missing_is_named_before_anything_is_submitted(pooled: Pooled) -> None:
    def refused(*words: str, **variables: str) -> str:
        result = run(pooled.study_command(*words), pooled.home, **variables)
        assert result.returncode == 2, result.stdout + result.stderr
        assert result.stderr.count("\n") == 1
        return result.stderr

    here = {"PREFECT_API_URL": pooled.url}
    assert "error: --pool gym: no Prefect server is named; set PREFECT_API_URL" in refused("--pool", POOL)
    said = refused("--pool", POOL, **here)
    assert "has no such work pool; make it with: prefect work-pool create gym --type process" in said
    made = run([*PREFECT, "work-pool", "create", POOL, "--type", "process"], pooled.home, **here)
    assert made.returncode == 0, made.stdout + made.stderr
    said = refused("--pool", POOL, **here)
    assert "the deployment sdsearch/train is on no work pool; put it there" in said
    assert "PREFECT_DEFAULT_WORK_POOL_NAME=gym prefect deploy --all" in said
    assert "leave out --report-only" in refused("--pool", POOL, "--workers", "2", **here)
    assert not flow_runs(pooled.url, RUNS[0])


def test_prefect_deploy_puts_both_flows_on_the_pool(pooled: Pooled) -> None:
    variables = {"PREFECT_API_URL": pooled.url, "PREFECT_DEFAULT_WORK_POOL_NAME": POOL}
    result = run(
        [*PREFECT, "--no-prompt", "deploy", "--all"], pooled.home, SDSEARCH_HOME=str(pooled.workspace), **variables
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for name, entrypoint in {
        "sdsearch/train": "flows.orchestration.train_flow.train_flow",
        "sdsearch-study/run": "flows.orchestration.study_flow.study_flow",
    }.items():
        deployed = HTTP.get(f"{pooled.url}/deployments/name/{name}").raise_for_status().json()
        assert (deployed["entrypoint"], deployed["work_pool_name"]) == (entrypoint, POOL)
        assert deployed["parameters"] == {"workspace": str(pooled.workspace)}
        assert not deployed["pull_steps"], "workers import the installed package from anywhere"


def test_a_study_on_the_pool_survives_its_own_death_and_a_workers(pooled: Pooled, tmp_path: Path) -> None:
    serial = tmp_path / "serial"
    assert run_command(["study", str(pooled.study), "--workspace", str(serial)]) == 0
    log, workspace = tmp_path / "log", Workspace.open(pooled.workspace)
    worker = pooled.worker(tmp_path / "worker-1")
    driver = start(pooled.study_command("--pool", POOL), log, pooled.home, PREFECT_API_URL=pooled.url)
    await_text(log, "study run 2/2: SD-Search, seed 0: on work pool gym, attempt 1", driver)
    wait_until(lambda: any(holder.run in RUNS for holder in held_runs(workspace)))
    driver.kill()
    driver.wait()
    (victim,) = [holder.run for holder in held_runs(workspace)]
    worker.kill()
    worker.wait()
    kill_all(pooled.home, "prefect.engine")
    wait_until(lambda: not held_runs(workspace))
    assert [state for _, state in flow_runs(pooled.url, victim)] == ["RUNNING"], "nobody told the server"

    worker = pooled.worker(tmp_path / "worker-2")
    driver = start(pooled.study_command("--pool", POOL), log, pooled.home, PREFECT_API_URL=pooled.url)
    assert driver.wait(DEADLINE_S) == 0, log.read_text(encoding="utf-8")
    said = log.read_text(encoding="utf-8")
    assert f"run {victim}: its process died; submitted again, attempt 2" in said
    for name in RUNS:
        assert sum(f"run {name} done in" in line and "greedy EM" in line for line in said.splitlines()) == 1
        states = [state for _, state in flow_runs(pooled.url, name)]
        assert states == (["CRASHED", "COMPLETED"] if name == victim else ["COMPLETED"])
    assert outcome(pooled.workspace) == outcome(serial)
    ledger = Ledger(ArtifactStore(workspace))
    attempts = [[a.status for a in history.attempts] for name in RUNS for _, history in ledger.histories(name)]
    assert all(statuses.count("done") == 1 and "stale" not in statuses for statuses in attempts), "none twice"

    again = run(pooled.study_command("--pool", POOL), pooled.home, PREFECT_API_URL=pooled.url)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished already") == 2
    assert [len(flow_runs(pooled.url, name)) for name in RUNS] == [2 if name == victim else 1 for name in RUNS]
    worker.send_signal(signal.SIGINT)
    worker.wait(DEADLINE_S)


def test_a_study_on_the_pool_submits_its_trainings_to_the_pool(pooled: Pooled, tmp_path: Path) -> None:
    study = tmp_path / "pair.toml"
    study.write_text(study_toml("pair", (*TWINS, "iterations=1")), encoding="utf-8")
    worker = pooled.worker(tmp_path / "worker", limit=3)
    parameters = [f"study={study}", f"pool={POOL}"]
    options = [text for parameter in parameters for text in ("--param", parameter)]
    command = [*PREFECT, "deployment", "run", "sdsearch-study/run", *options, "--watch"]
    try:
        done = run(command, pooled.home, PREFECT_API_URL=pooled.url)
        assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "worker").read_text(encoding="utf-8")
    finally:
        worker.send_signal(signal.SIGINT)
        worker.wait(DEADLINE_S)
    assert [state for _, state in flow_runs(pooled.url, str(study))] == ["COMPLETED"]
    ledger = Ledger(ArtifactStore(Workspace(pooled.workspace)))
    for name in ("pair-grpo-s0", "pair-sd-s0"):
        ((id_, state),) = flow_runs(pooled.url, name)
        assert state == "COMPLETED"
        flow_run = HTTP.get(f"{pooled.url}/flow_runs/{id_}").raise_for_status().json()
        assert flow_run["parent_task_run_id"], "it stands under the study's flow run"
        assert flow_run["work_pool_name"] == POOL
        assert ledger.get_run(name).status == "done"
    assert (pooled.workspace / "studies" / "pair" / "table.md").is_file()
