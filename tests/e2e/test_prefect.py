"""Runs under a real Prefect server from a fresh PREFECT_HOME; afterwards no process is left."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from storage.database.connection import Database
from storage.database.rows import STAGE_TABLES
from storage.database.tables import table_schemas
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.workspace import Workspace
from tests.e2e.proxy import Proxy
from tests.support.proxying import RecordingProxy, recording_proxy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SDSEARCH = [sys.executable, "-m", "flows.app"]
PREFECT = [sys.executable, "-m", "prefect"]
# Prefect's start counts here: a cold machine that does other work as well needs minutes.
DEADLINE_S = 400
HTTP = httpx.Client(timeout=DEADLINE_S, verify=False)  # Of this machine only; making one costs more than a question.
ONE_RETRY = {"PREFECT_CLIENT_MAX_RETRIES": "1"}
QUICK = ["model.torch_threads=1", "iterations=2", "data.questions_per_iteration=2", "evaluation.num_questions=2"]


def environment(home: Path) -> dict[str, str]:
    """Return an environment in which Prefect knows nothing yet."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SDSEARCH_"))}
    return kept | {"PREFECT_HOME": str(home), "PYTHONUNBUFFERED": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def processes_of(home: Path) -> dict[int, str]:
    """Return the living processes that were started with this PREFECT_HOME: pid and command line."""
    mark = f"PREFECT_HOME={home}".encode()
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # It has ended, or is another user's.
    return found


def kill_the_flow(home: Path) -> None:
    """Kill -9 the process that Prefect's runner started for a flow run."""
    (pid,) = [pid for pid, command in processes_of(home).items() if "prefect.engine" in command]
    os.kill(pid, signal.SIGKILL)


def await_file(workspace: Path, pattern: str) -> Path:
    """Wait for a file below the workspace's artifacts."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := sorted((workspace / "artifacts").glob(pattern))):
        assert time.monotonic() < deadline, pattern
        time.sleep(0.05)
    return found[0]


def flow_runs(url: str, name: str) -> list[tuple[str, str]]:
    """Return id and state of the flow runs of a name, oldest first."""
    asked = {"flow_runs": {"name": {"any_": [name]}}, "sort": "START_TIME_ASC"}
    answer = HTTP.post(f"{url}/flow_runs/filter", json=asked).raise_for_status().json()
    return [(one["id"], one["state"]["type"]) for one in answer]


def await_state(url: str, name: str, *states: str) -> list[str]:
    """Wait until the flow runs of a name are in these states, and return their ids."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = flow_runs(url, name)
        if [state for _, state in found] == list(states):
            return [id_ for id_, _ in found]
        assert time.monotonic() < deadline, found
        time.sleep(0.3)


def await_text(path: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process has written a text; fail with all that it wrote when it ends or the deadline passes."""
    deadline = time.monotonic() + DEADLINE_S
    while text not in path.read_text(encoding="utf-8"):
        assert process.poll() is None, f"it ended with {process.returncode}:\n{path.read_text(encoding='utf-8')}"
        assert time.monotonic() < deadline, path.read_text(encoding="utf-8")
        time.sleep(0.2)


def start(command: list[str], log: Path, home: Path, **extra: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment(home) | extra, stdout=file, stderr=file, start_new_session=True
        )


def run(command: list[str], home: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(home) | extra,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def empty_tables(workspace: Path) -> list[str]:
    database = Database(Workspace(workspace))
    tables = [
        name
        for name in table_schemas()
        if name not in ("question_sets", "prepared_questions", "retries", "warnings", *STAGE_TABLES["judge"])
    ]
    return [name for name in tables if not database.query(f'SELECT 1 FROM "{name}" LIMIT 1').num_rows]


def status(workspace: Path, name: str) -> str:
    return Ledger(ArtifactStore(Workspace(workspace))).get_run(name).status


@pytest.fixture(scope="module")
def proxy() -> Iterator[RecordingProxy]:
    """A proxy that reaches nobody, as it is where a company's network begins elsewhere."""
    with recording_proxy() as running:
        yield running
        assert running.asked == [], "the server is this machine's own"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, proxy: RecordingProxy) -> Iterator[tuple[Path, Path, str]]:
    """`sdsearch up` on a free port, behind a proxy; gives PREFECT_HOME, workspace and API's address, then Ctrl-C."""
    folder = tmp_path_factory.mktemp("served")
    home, workspace, log = folder / "prefect", folder / "workspace", folder / "log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*SDSEARCH, "up", "--port", str(port), "--workspace", str(workspace)]
    process = start(command, log, home, HTTP_PROXY=proxy.url, all_proxy=proxy.url)
    try:
        await_text(log, "Ctrl-C stops", process)
        yield home, workspace, f"http://127.0.0.1:{port}/api"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, log.read_text(encoding="utf-8")
    finally:
        process.kill()
        process.wait()
    assert not processes_of(home)


def test_a_deployment_run_is_killed_retried_and_fills_the_database(served: tuple[Path, Path, str]) -> None:
    home, workspace, url = served
    parameters = ["config=tiny", f"overrides={json.dumps(QUICK)}"]
    options = [text for parameter in parameters for text in ("--param", parameter)]
    result = run([*PREFECT, "deployment", "run", "sdsearch/train", *options], home, PREFECT_API_URL=url)
    assert result.returncode == 0, result.stdout + result.stderr
    # The run was given no name: a retry of its flow run must find the one that it made.
    name = await_file(workspace, "run=tiny-*/iteration=00001/stage=sample/stage.json").parts[-4].partition("=")[2]
    kill_the_flow(home)
    (flow_run,) = await_state(url, name, "CRASHED")
    result = run([*PREFECT, "flow-run", "retry", flow_run], home, PREFECT_API_URL=url)
    assert result.returncode == 0, result.stdout + result.stderr
    assert await_state(url, name, "COMPLETED") == [flow_run]
    assert [state for _, state in flow_runs(url, f"{name}-1")] == ["CRASHED", "COMPLETED"]
    assert status(workspace, name) == "done"
    assert [path.name for path in (workspace / "artifacts").iterdir()] == [f"run={name}"]
    assert empty_tables(workspace) == []
    artifacts = HTTP.post(f"{url}/artifacts/latest/filter", json={}).raise_for_status().json()
    by_key = {each["key"]: each["data"] for each in artifacts}
    assert {f"{name}-{kind}" for kind in ("metrics", "summary", "progress")} <= by_key.keys()
    assert "](data:image/svg+xml;base64," in by_key[f"{name}-summary"]
    assert re.findall(r"^\| (\d+) \|", by_key[f"{name}-summary"], re.MULTILINE) == ["2", "1"]
    said = logged(url, flow_run, f"run {name} done in ")
    assert [line[: len("iteration 1/2  reward")] for line in said if line.startswith("iteration ")] == [
        "iteration 1/2  reward",
        "iteration 2/2  reward",
    ]
    assert f"run {name}: 2 iterations, model mini" in said
    assert any(line.startswith(f"run {name} done in ") for line in said)


def logged(url: str, flow_run: str, last: str) -> list[str]:
    """Return the lines of a flow run's own log, oldest first, once the one that begins as `last` is among them.

    Prefect sends them in batches, the last ones after the run's end.
    """
    asked = {"logs": {"flow_run_id": {"any_": [flow_run]}}, "sort": "TIMESTAMP_ASC"}
    for _ in range(60):
        found = HTTP.post(f"{url}/logs/filter", json=asked).raise_for_status().json()
        lines = [line["message"] for line in found]
        if any(line.startswith(last) for line in lines):
            return lines
        time.sleep(0.5)
    raise AssertionError(f"no line {last!r} within 30 s: {lines}")


def test_the_server_takes_the_other_deployment_and_the_automation(served: tuple[Path, Path, str]) -> None:
    _, workspace, url = served
    train = HTTP.get(f"{url}/deployments/name/sdsearch/train").raise_for_status().json()
    form = train["parameter_openapi_schema"]["properties"]
    assert "section.key=value" in form["overrides"]["description"]
    study = HTTP.get(f"{url}/deployments/name/sdsearch-study/run").raise_for_status().json()
    assert study["entrypoint"] == "flows.orchestration.study_flow.study_flow"
    assert study["parameters"] == {"workspace": str(workspace)}
    recipe = yaml.safe_load((ROOT / "flows" / "automations" / "heartbeat.yaml").read_text(encoding="utf-8"))
    made = HTTP.post(f"{url}/automations/", json=recipe).raise_for_status().json()
    assert made["enabled"] is True
    assert made["trigger"]["match_related"]["prefect.resource.name"] == "sdsearch"
    (action,) = made["actions"]
    assert (action["type"], action["state"]) == ("change-flow-run-state", "CRASHED")


def test_what_a_person_can_mend_is_one_line_under_prefect_too(
    served: tuple[Path, Path, str], proxy: RecordingProxy
) -> None:
    home, workspace, url = served
    command = [*SDSEARCH, "train", "tiny", "--run", "bad", "--set", "data.train_split=trian"]
    proxies = {"ALL_PROXY": proxy.url, "http_proxy": proxy.url}
    # A slash at the end of the address is nothing that a person should have to know of.
    result = run([*command, "--workspace", str(workspace)], home, PREFECT_API_URL=f"{url}/", **proxies)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: the embedded world has no split 'trian'")
    assert result.stderr.count("\n") == 1
    assert f"Prefect server: {url.removesuffix('/api')} (named" in result.stdout


def listening_addresses(port: int) -> set[str]:
    """Return the addresses, as the kernel writes them, on which this machine listens at a port."""
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()[1:]]
    local = [row[1].rsplit(":", 1) for row in rows if row[3] == "0A"]
    return {address for address, hexadecimal in local if int(hexadecimal, 16) == port}


def test_few_functions_lie_between_the_command_and_a_rollout_under_prefect_too(
    served: tuple[Path, Path, str], tmp_path: Path
) -> None:
    home, _, url = served
    options = [part for setting in QUICK for part in ("--set", setting)]
    command = [sys.executable, "-m", "tests.support.frames", "train", "tiny", "--workspace", str(tmp_path), *options]
    said = run(command, home, PREFECT_API_URL=url)
    lines = said.stdout.splitlines()
    assert "frames:" in lines, said.stdout + said.stderr
    frames = lines[lines.index("frames:") + 1 :]
    assert "flows/orchestration/train_flow.py: train" in frames
    assert len(frames) <= 10, frames


def test_the_server_listens_to_this_machine_alone(served: tuple[Path, Path, str]) -> None:
    port = httpx.URL(served[2]).port
    assert port is not None
    assert listening_addresses(port) == {"0100007F"}, "127.0.0.1, and no address that others reach"


@pytest.mark.long
def test_an_interrupted_run_goes_on_through_death_and_without_a_server(
    served: tuple[Path, Path, str], tmp_path: Path
) -> None:
    home, workspace, log = tmp_path / "prefect", tmp_path / "workspace", tmp_path / "log"
    where = ["--workspace", str(workspace)]
    settings = [text for override in [*QUICK, "iterations=3"] for text in ("--set", override)]
    process = start([*SDSEARCH, "train", "tiny", "--run", "r1", *settings, *where], log, home)
    try:
        await_text(log, "iteration 1/3", process)
        assert any("server start" in line for line in processes_of(home).values())
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, log.read_text(encoding="utf-8")
    finally:
        process.kill()
        process.wait()
    assert not processes_of(home)
    said = log.read_text(encoding="utf-8")
    assert "(started for this run)" in said
    assert said.rstrip().endswith(f"interrupted; continue with: sdsearch resume r1 --workspace {workspace}")
    assert "Traceback" not in said
    assert status(workspace, "r1") == "interrupted"
    _die_and_finish_alone(served[2], [*SDSEARCH, "resume", "r1", *where], workspace, tmp_path)


def _die_and_finish_alone(url: str, resume: list[str], workspace: Path, folder: Path) -> None:
    """Kill -9 a resumed run that no runner watches; resume it again, and take its server away meanwhile."""
    log, home = folder / "log", folder / "other"
    dying = start(resume, log, home, PREFECT_API_URL=url)
    # The interrupted process may have sampled iteration 2 already: the file alone does not show that this one runs.
    (stuck,) = await_state(url, "r1", "RUNNING")
    await_file(workspace, "run=r1/iteration=00002/stage=sample/stage.json")
    dying.kill()
    dying.wait()
    with Proxy(int(url.rsplit(":", 1)[1].removesuffix("/api"))) as proxy:
        last = start(resume, log, home, PREFECT_API_URL=f"http://127.0.0.1:{proxy.port}/api", **ONE_RETRY)
        assert await_state(url, "r1", "CRASHED", "RUNNING")[0] == stuck
        await_text(log, "Prefect server: ", last)
        proxy.cut()
        assert last.wait(DEADLINE_S) == 0, log.read_text(encoding="utf-8")
    assert status(workspace, "r1") == "done"
    said = log.read_text(encoding="utf-8")
    assert "Prefect's record of it is incomplete" in said
    assert "iteration 3, the end of the run; the files and the database have everything" in said
    assert "dev EM, greedy" in said
    assert f"database: {workspace / 'sdsearch.duckdb'}" in said
    assert empty_tables(workspace) == []
    assert not processes_of(home)
