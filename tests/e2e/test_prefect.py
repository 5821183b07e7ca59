"""Runs under a real Prefect server from a fresh PREFECT_HOME; afterwards no process is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from storage.artifacts import ArtifactStore
from storage.database import Database, table_schemas
from storage.ledger import Ledger
from storage.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SDSEARCH = [sys.executable, "-m", "flows.cli"]
PREFECT = [sys.executable, "-m", "prefect"]
# Prefect's start counts here: a cold machine that does other work as well needs minutes.
DEADLINE_S = 400
QUICK = ["model.torch_threads=1", "iterations=2", "data.questions_per_iteration=2", "evaluation.num_questions=2"]


def environment(home: Path) -> dict[str, str]:
    """Return an environment in which Prefect knows nothing yet."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SDSEARCH_"))}
    return kept | {"PREFECT_HOME": str(home), "PYTHONUNBUFFERED": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def processes_of(home: Path) -> list[str]:
    """Return the command lines of the living processes that were started with this PREFECT_HOME."""
    mark = f"PREFECT_HOME={home}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # It has ended, or is another user's.
    return found


def await_text(path: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process has written a text; fail with all that it wrote when it ends or the deadline passes."""
    deadline = time.monotonic() + DEADLINE_S
    while text not in path.read_text(encoding="utf-8"):
        assert process.poll() is None, f"it ended with {process.returncode}:\n{path.read_text(encoding='utf-8')}"
        assert time.monotonic() < deadline, path.read_text(encoding="utf-8")
        time.sleep(0.2)


def start(command: list[str], log: Path, home: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment(home), stdout=file, stderr=file, start_new_session=True
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
    return [name for name in table_schemas() if not database.query(f'SELECT 1 FROM "{name}" LIMIT 1').num_rows]


def status(workspace: Path, name: str) -> str:
    return Ledger(ArtifactStore(Workspace(workspace))).get_run(name).status


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, str]]:
    """`sdsearch up` on a free port; gives PREFECT_HOME, the workspace and the API's address, then Ctrl-C."""
    folder = tmp_path_factory.mktemp("served")
    home, workspace, log = folder / "prefect", folder / "workspace", folder / "log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start([*SDSEARCH, "up", "--port", str(port), "--workspace", str(workspace)], log, home)
    try:
        await_text(log, "Ctrl-C stops", process)
        yield home, workspace, f"http://127.0.0.1:{port}/api"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, log.read_text(encoding="utf-8")
    finally:
        process.kill()
        process.wait()
    assert processes_of(home) == []


def test_a_deployment_run_fills_the_database(served: tuple[Path, Path, str]) -> None:
    home, workspace, url = served
    parameters = ["config=tiny", "run=d1", f"overrides={json.dumps(QUICK)}"]
    options = [text for parameter in parameters for text in ("--param", parameter)]
    command = [*PREFECT, "deployment", "run", "sdsearch/train", *options, "--watch"]
    result = run(command, home, PREFECT_API_URL=url)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Completed" in result.stdout
    assert status(workspace, "d1") == "done"
    assert empty_tables(workspace) == []
    study = httpx.get(f"{url}/deployments/name/sdsearch-study/run", timeout=DEADLINE_S).raise_for_status().json()
    assert study["entrypoint"] == "flows.study_flow.study_flow"
    assert study["parameters"] == {"workspace": str(workspace)}


def test_what_a_person_can_mend_is_one_line_under_prefect_too(served: tuple[Path, Path, str]) -> None:
    home, workspace, url = served
    command = [*SDSEARCH, "train", "tiny", "--run", "bad", "--set", "data.train_split=trian"]
    result = run([*command, "--workspace", str(workspace)], home, PREFECT_API_URL=url)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: the embedded world has no split 'trian'")
    assert result.stderr.count("\n") == 1
    assert f"Prefect server: {url.removesuffix('/api')} (named" in result.stdout


def listening_addresses(port: int) -> set[str]:
    """Return the addresses, as the kernel writes them, on which this machine listens at a port."""
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()[1:]]
    local = [row[1].rsplit(":", 1) for row in rows if row[3] == "0A"]
    return {address for address, hexadecimal in local if int(hexadecimal, 16) == port}


def test_the_server_listens_to_this_machine_alone(served: tuple[Path, Path, str]) -> None:
    port = httpx.URL(served[2]).port
    assert port is not None
    assert listening_addresses(port) == {"0100007F"}, "127.0.0.1, and no address that others reach"


def test_an_interrupted_run_goes_on_and_no_server_is_left(tmp_path: Path) -> None:
    home, workspace, log = tmp_path / "prefect", tmp_path / "workspace", tmp_path / "log"
    where = ["--workspace", str(workspace)]
    settings = [text for override in QUICK for text in ("--set", override)]
    command = [*SDSEARCH, "train", "tiny", "--run", "r1", *settings, *where]
    process = start(command, log, home)
    try:
        await_text(log, "iteration 1/2", process)
        assert any("server start" in line for line in processes_of(home))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, log.read_text(encoding="utf-8")
    finally:
        process.kill()
        process.wait()
    assert processes_of(home) == []
    said = log.read_text(encoding="utf-8")
    assert said.rstrip().endswith(f"interrupted; go on with: sdsearch resume r1 --workspace {workspace}")
    assert "Traceback" not in said
    assert status(workspace, "r1") == "interrupted"

    result = run([*SDSEARCH, "resume", "r1", *where], home)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "(started for this run)" in result.stdout
    assert "dev EM, greedy" in result.stdout
    assert f"database: {workspace / 'sdsearch.duckdb'}" in result.stdout
    assert status(workspace, "r1") == "done"
    assert empty_tables(workspace) == []
    assert processes_of(home) == []
