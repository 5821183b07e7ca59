"""Forks, evaluations and replays are tracked too, each as a run of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.app import run_command
from storage.runs.tracking import read_run_tracking
from storage.storage import Storage
from tests.flows.tracking.conftest import QUICK
from tests.support.tracking import KEPT

RECORDER = "tests.support.tracking:Recorder"
TRACKED = ["--set", f"tracking.sinks=['{RECORDER}']"]

pytestmark = pytest.mark.long


def steps(run: str) -> list[int]:
    return [step for step, _ in KEPT[run].values]


def test_an_evaluation_is_tracked(folder: Path, storage: Storage) -> None:
    place = ["--workspace", str(folder)]
    asked = ["--run", "first", "--name", "asked", "--num-questions", "1"]
    assert run_command(["evaluate", *asked, *place, *TRACKED]) == 0
    ((step, values),) = KEPT["asked"].values
    row = storage.database.query("SELECT * FROM evaluations WHERE run = 'asked'").to_pylist()[0]
    assert step == row["iteration"] == 2
    assert values["evaluations/world/dev/greedy/num_questions"] == 1
    assert KEPT["asked"].closed == ["done"]


def test_a_replay_is_tracked(folder: Path, storage: Storage) -> None:
    words = ["replay", "first", "--run", "again", "--set", "hindsight.labels=none", "--workspace", str(folder)]
    words += ["--iterations", "2"]
    assert run_command([*words, *TRACKED]) == 0
    assert steps("again") == [2]
    assert "mean_jsd" in dict(KEPT["again"].values)[2]


def test_a_fork_is_tracked_from_where_it_begins(folder: Path, storage: Storage) -> None:
    overrides = [word for item in (*QUICK, "iterations=3") for word in ("--set", item)]
    words = ["train", "tiny", "--run", "first", "--fork", "further", "--no-prefect", "--workspace", str(folder)]
    assert run_command([*words, *overrides, *TRACKED]) == 0
    assert steps("further") == [2, 3]
    assert KEPT["further"].opened[0].kind == storage.ledger.get_run("further").kind.title
    assert read_run_tracking(storage.workspace, "further").trackers[RECORDER].last_step == 3
