"""What real trackers have of a run, read by their own readers: figures, settings, rollouts, each step once.

Where a tracker is not installed its tests are skipped; `make test-tracking` installs all of them and skips none.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.plugins.check import check_sinks
from flows.tracking.tracking import open_tracking
from flows.training.launch import carry_out, new_job
from schemas.errors import UserError
from schemas.records.tracking import RunTracking, TrackerRun
from storage.runs.tracking import read_run_tracking, write_run_tracking
from storage.storage import Storage
from tests.flows.tracking.conftest import QUICK, Heard, quick

ALL = "SDSEARCH_TEST_ALL_TRACKERS"
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
QUIET = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
Figures = Mapping[str, list[tuple[int, float]]]
"""Each metric's (step, value), as a tracker's own reader gives them."""


@pytest.fixture(params=list(PACKAGES))
def tracker(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if not os.environ.get(ALL) and find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{name} is not installed: make test-tracking, or pip install -e '.[{name}]'")
    return name


@pytest.fixture(scope="module")
def trackio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trackio has one folder a process."""
    return tmp_path_factory.mktemp("trackio")


@pytest.fixture
def overrides(tracker: str, tmp_path: Path, trackio_folder: Path) -> list[str]:
    """The settings of one tracker, with a place of this test alone."""
    own = {
        "tensorboard": [f"tracking.tensorboard.folder='{tmp_path}'"],
        "wandb": [f"tracking.wandb.folder='{tmp_path}'"],
        "mlflow": [f"tracking.mlflow.uri='sqlite:///{tmp_path}/mlflow.db'"],
        "trackio": [f"tracking.trackio.folder='{trackio_folder}'", f"tracking.trackio.project='{tmp_path.name}'"],
    }
    return [f"tracking.sinks=['{tracker}']", "tracking.rollouts=2", "tracking.close_timeout_s=120", *own[tracker]]


def show(storage: Storage, overrides: list[str], *iterations: int) -> TrackerRun:
    """Tell the tracker of iterations, as a run at work does; return what is kept of it."""
    heard = Heard()
    with open_tracking(quick(*overrides), storage.ledger.get_run("first"), storage, heard) as tracking:
        for iteration in iterations:
            tracking.show(iteration)
    assert heard.warnings == []
    (kept,) = read_run_tracking(storage.workspace, "first").trackers.values()
    return kept


def expected(storage: Storage) -> Figures:
    figures: dict[str, list[tuple[int, float]]] = {}
    for row in storage.database.query("SELECT * EXCLUDE (run) FROM v_iterations ORDER BY iteration").to_pylist():
        for name, value in row.items():
            if value is not None:
                figures.setdefault(name, []).append((row["iteration"], float(value)))
    for row in storage.database.query("SELECT iteration, em FROM evaluations ORDER BY iteration").to_pylist():
        figures.setdefault("evaluations/world/dev/greedy/em", []).append((row["iteration"], row["em"]))
    return figures


def of_tensorboard(folder: Path, project: str, run_id: str) -> Figures:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / run_id)).Reload()
    (settings,) = events.Tensors("settings/text_summary")
    assert "iterations = 2" in settings.tensor_proto.string_val[0].decode()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def of_mlflow(folder: Path, project: str, run_id: str) -> Figures:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    assert run.data.params["iterations"] == "2"
    assert run.data.params["model.path"] == '"mini"'
    return {name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)] for name in run.data.metrics}


def of_trackio(folder: Path, project: str, run_id: str) -> Figures:
    from trackio.sqlite_storage import SQLiteStorage

    figures: dict[str, list[tuple[int, float]]] = {}
    for row in SQLiteStorage.get_logs(project, "first", run_id=run_id):
        for name, value in row.items():
            if name not in ("step", "timestamp"):
                figures.setdefault(name, []).append((row["step"], value))
    assert SQLiteStorage.get_run_config(project, "first", run_id=run_id)["iterations"] == 2
    traces = SQLiteStorage.get_traces(project, "first", run_id=run_id)
    assert len(traces) == 2 * 2
    assert {trace["messages"][0]["role"] for trace in traces} == {"user"}
    assert all("<search>" in json.dumps(trace) or "<answer>" in json.dumps(trace) for trace in traces)
    assert {"reward", "advantage", "label", "golden_answers", "rollout_id"} <= set(traces[0]["metadata"])
    return figures


def of_wandb(folder: Path, project: str, run_id: str) -> Figures:
    figures: dict[str, list[tuple[int, float]]] = {}
    config: dict[str, Any] = {}
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        assert file.stem == f"run-{run_id}"
        words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        said = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, **QUIET}).stdout
        for record in map(json.loads, said.splitlines()):
            if record["type"] == "run":
                config |= record["run"].get("config", {}).get("update", {})
            elif record["type"] == "history":
                row = record["history"]["item"]
                for name, value in row.items():
                    if not name.startswith(("_", "rollouts")):
                        figures.setdefault(name, []).append((row["_step"], value))
    assert config["iterations"] == 2
    tables = [json.loads(text) for text in {path.read_text() for path in folder.glob("wandb/*/files/media/table/*")}]
    assert len(tables) == 2
    assert all(len(table["data"]) == 2 and table["columns"][:2] == ["rollout_id", "text"] for table in tables)
    return figures


READERS: dict[str, Callable[[Path, str, str], Figures]] = {
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
    "mlflow": of_mlflow,
    "trackio": of_trackio,
}


def check(tracker: str, storage: Storage, folder: Path, kept: TrackerRun) -> None:
    """Compare what the tracker has with the database."""
    place = folder if tracker != "trackio" else Path()
    got = READERS[tracker](place, folder.name, kept.id)
    wanted = expected(storage)
    assert set(wanted) <= set(got)
    for name, values in wanted.items():
        assert [step for step, _ in got[name]] == [step for step, _ in values], name
        assert [value for _, value in got[name]] == pytest.approx([value for _, value in values], rel=1e-6), name


def test_a_tracker_has_what_the_database_has(
    tracker: str, overrides: list[str], storage: Storage, tmp_path: Path
) -> None:
    check(tracker, storage, tmp_path, show(storage, overrides, 0, 1, 2))


def test_a_resumed_run_goes_on_with_the_same_run_of_the_tracker(
    tracker: str, overrides: list[str], storage: Storage, tmp_path: Path
) -> None:
    before = show(storage, overrides, 0, 1)
    assert before.last_step == 1
    if tracker != "wandb":  # Offline, W&B's files cannot say what they have; the others lose the last note here.
        behind = before.model_copy(update={"last_step": 0})
        write_run_tracking(storage.workspace, "first", RunTracking(trackers={tracker: behind}))
    after = show(storage, overrides, 1, 2)
    assert (after.id, after.last_step) == (before.id, 2)
    check(tracker, storage, tmp_path, after)


KILLED = """
import sys, time
from pathlib import Path
from flows.run.progress import SilentReporter
from flows.tracking.tracking import open_tracking
from flows.training.job import open_storage
from tests.flows.tracking.conftest import quick
storage = open_storage(Path(sys.argv[1]))
with open_tracking(quick(*sys.argv[2:]), storage.ledger.get_run("first"), storage, SilentReporter()) as tracking:
    tracking.show(1)
    time.sleep(600)
"""


@pytest.mark.long
def test_a_run_that_is_killed_lacks_and_repeats_nothing(
    tracker: str, overrides: list[str], storage: Storage, folder: Path, tmp_path: Path
) -> None:
    # A process of its own, which does not use the helper that W&B has begun for this one.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    words = [sys.executable, "-c", KILLED, str(folder), *overrides]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not any(t.last_step == 1 for t in read_run_tracking(storage.workspace, "first").trackers.values()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1.5 if tracker == "wandb" else 0)  # W&B writes its file every half second.
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    check(tracker, storage, tmp_path, show(storage, overrides, 1, 2))


def test_a_missing_package_is_one_line_before_anything_is_trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.tracking.ports.find_spec", lambda name: None)
    for name, package in PACKAGES.items():
        with pytest.raises(
            UserError, match=rf"'{name}': the package {package} is not .* pip install 'sdsearch\[{name}"
        ):
            check_sinks(quick(f"tracking.sinks=['{name}']"))
    job = new_job("tiny", [*QUICK, "tracking.sinks=['wandb']"], "untracked", folder)
    with pytest.raises(UserError, match="the package wandb is not installed"):
        carry_out(job, Console(file=io.StringIO()), use_prefect=False)
    assert not (folder / "artifacts" / "run=untracked").exists()


def test_wandb_online_needs_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: make test-tracking")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match="there is no API key; log in with: wandb login"):
        check_sinks(quick("tracking.sinks=['wandb']", "tracking.wandb.mode=online"))
