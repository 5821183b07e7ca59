"""What a notebook reads of a run: while it works, in a copied folder, and of what is not there."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import duckdb
import pytest

import sdsearch
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.loop import train_plain
from schemas.records.ledger import StageKey
from storage.errors import DamagedArtifactError, DatabaseUnusableError
from storage.runs.lock import lock_holder
from storage.storage import Storage
from storage.workspace import Workspace
from tests.flows.api.conftest import SETTINGS

pytestmark = pytest.mark.slow


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_frames_hold_the_rows_of_the_run_and_of_the_iteration(folder: Path) -> None:
    run = sdsearch.open_run(folder / "workspace", "first")
    assert list(run.frame()["iteration"]) == [0, 1, 2, 3]
    frame = run.iteration(2).frame()
    assert len(frame) == 8
    assert set(frame["iteration"]) == {2}
    assert list(frame["rollout_id"]) == sorted(frame["rollout_id"])
    assert frame["reward"].dtype == float
    scores = {score.rollout_id: score.reward for score in run.iteration(2).records().scores}
    assert dict(zip(frame["rollout_id"], frame["reward"], strict=True)) == scores
    assert len(run.iteration(2).frame("query_credit")) == len(run.iteration(2).credit())


def test_the_credit_of_a_group_is_its_own(folder: Path) -> None:
    it = sdsearch.open_run(folder / "workspace", "first").iteration(3)
    groups = [group.id for group in it.records().groups]
    by_group = {group: it.credit(group) for group in groups}
    assert [token for group in groups for token in by_group[group]] == it.credit()
    assert all(by_group.values())
    assert sdsearch.open_run(folder / "workspace", "first").iteration(1).credit() == [], "it warms up"


def test_reading_a_copy_changes_no_file(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder / "workspace", copy)
    before = contents(copy)
    for path in [copy, *copy.rglob("*")]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        workspace = sdsearch.open_workspace(copy)
        (run,) = workspace.runs()
        it = run.iteration(3)
        assert len(it.frame("v_queries")) == len(workspace.sql("SELECT * FROM v_queries WHERE iteration = 3"))
        assert it.loss().loss == pytest.approx(it.records().update.steps[0].loss, rel=1e-5)
    finally:
        for path in [copy, *copy.rglob("*")]:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)
    assert contents(copy) == before


class _Reading(SilentReporter):
    """Reads the run as soon as an iteration's update is done, while its process holds the lock."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.seen: list[tuple[str, int, str]] = []

    def stage_done(self, record, skipped: bool) -> None:  # type: ignore[no-untyped-def]
        if record.stage != "update":
            return
        run = sdsearch.open_run(self.workspace, record.run)
        it = run.iteration(record.iteration)
        assert it.records().update.policy_version == record.iteration
        holder = lock_holder(Workspace(self.workspace), record.run)
        self.seen.append((run.status, len(it.records().groups), holder.run if holder else ""))
        with pytest.raises(sdsearch.UserError, match="has no iteration 9 "):
            run.iteration(9)

    def iteration_done(self, iteration: int, numbers: dict[str, float]) -> None:
        assert len(sdsearch.open_run(self.workspace, "live").iteration(iteration).frame()) == 8


def test_a_run_at_work_is_read_beside_it(tmp_path: Path) -> None:
    reading = _Reading(tmp_path)
    train_plain(load_settings("tiny", [*SETTINGS, "iterations=2"]), "live", tmp_path, reading)
    assert reading.seen == [("running", 2, "live"), ("running", 2, "live")]
    assert sdsearch.open_run(tmp_path, "live").status == "done"


def test_what_is_not_there_is_one_line_that_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    run = sdsearch.open_run(folder / "workspace", "first")
    it = run.iteration(1)
    for ask, expected in (
        (lambda: sdsearch.open_workspace(tmp_path / "none"), "no database in the workspace .*/none; name another"),
        (lambda: sdsearch.open_run(folder / "workspace", "frist"), "no run 'frist' in workspace .*mean 'first'"),
        (lambda: run.iteration(9), r"has no iteration 9 \(it has 1 to 3, 3 were asked for\); choose another one"),
        (lambda: run.iteration(-1), "has no iteration -1 "),
        (lambda: run.frame("v_iteration"), "no table or view 'v_iteration' .*did you mean 'v_iterations'"),
        (lambda: it.frame("v_learning_curve"), r"v_learning_curve has no column iteration; ask it with sql\(\)"),
        (lambda: it.credit("nobody"), "has no group 'nobody'; it has 2: 00001/world:"),
        (lambda: it.loss("nobody"), "has no group 'nobody'; it has 2: 00001/world:"),
        (lambda: run.iteration(0).records().groups, "stage 'sample' of iteration 0 of run 'first' is not done"),
        (lambda: run.policy(7), r"keeps no weights of version 7 \(it has: 0, 1, 2, 3\); choose one of these"),
    ):
        with pytest.raises(sdsearch.UserError, match=expected) as raised:
            ask()
        assert "\n" not in str(raised.value)


def test_rows_that_the_database_lacks_and_files_that_changed_are_named(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder / "workspace", copy)
    storage = Storage(Workspace(copy))
    with storage.database.transaction() as connection:
        connection.execute("DELETE FROM stages WHERE iteration = 2")
        connection.execute("DELETE FROM rollouts WHERE iteration = 2")
    it = sdsearch.open_run(copy, "first").iteration(2)
    with pytest.raises(sdsearch.UserError, match=r"no rows of iteration 2 of run 'first' yet; .*sdsearch db rebuild"):
        it.frame()
    done = storage.ledger.done(StageKey(run="first", iteration=2, stage="sample"))
    assert done is not None
    path = storage.artifacts.path(done.outputs[0])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedArtifactError, match=r"groups\.parquet"):
        _ = it.records().groups
    (copy / "sdsearch.duckdb").unlink()
    duckdb.connect(str(copy / "sdsearch.duckdb")).close()
    before = (copy / "sdsearch.duckdb").read_bytes()
    with pytest.raises(DatabaseUnusableError, match="has no tables yet; ask again when its run has begun"):
        sdsearch.open_run(copy, "first").frame()
    assert (copy / "sdsearch.duckdb").read_bytes() == before, "reading makes no tables"
    (copy / "sdsearch.duckdb").unlink()
    with pytest.raises(sdsearch.UserError, match=r"sdsearch\.duckdb is missing; make it again from the files with"):
        it.frame()
    assert not (copy / "sdsearch.duckdb").exists(), "reading makes no database"


def test_a_persons_query_can_only_read(folder: Path) -> None:
    run = sdsearch.open_run(folder / "workspace", "first")
    frame = run.sql("SELECT iteration, count(*) AS n FROM v_rollouts WHERE run = $run GROUP BY ALL ORDER BY 1")
    assert frame.to_dict("list") == {"iteration": [1, 2, 3], "n": [8, 8, 8]}
    with pytest.raises(Exception, match="the query does not run"):
        run.sql("DELETE FROM runs")
    assert len(sdsearch.open_workspace(folder / "workspace").runs()) == 1
