"""Trackers get what the database has, once; whatever they do, the run ends as it would without them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from flows.run.progress import SilentReporter
from flows.tracking.steps import read_steps
from flows.tracking.tracking import open_tracking, without_passwords
from flows.training.job import open_storage
from flows.training.loop import train_plain
from schemas.errors import UserError
from schemas.records.tracking import RunTracking, TrackerRun
from schemas.settings.root import Settings
from storage.database.tables import describe_tables
from storage.runs.tracking import read_run_tracking, write_run_tracking
from storage.storage import Storage
from tests.flows.tracking.conftest import Heard, quick
from tests.support.tracking import KEPT

RECORDER = "tests.support.tracking:Recorder"
HANGING = "tests.support.tracking:Hanging"
RAISING = "tests.support.tracking:Raising"


def tracked(*sinks: str, options: str = "{}", more: Sequence[str] = ()) -> Settings:
    return quick(f"tracking.sinks={list(sinks)}", f"tracking.options={options}", *more)


def show(storage: Storage, settings: Settings, *iterations: int) -> Heard:
    """Tell the trackers of a run that is done of its iterations, as if it were at work."""
    heard = Heard()
    with open_tracking(settings, storage.ledger.get_run("first"), storage, heard) as tracking:
        for iteration in iterations:
            tracking.show(iteration)
    return heard


def rows(storage: Storage, table: str) -> list[dict]:
    return storage.database.query(f'SELECT * FROM "{table}" ORDER BY ALL').to_pylist()


def numbers(row: dict, *left_out: str) -> dict[str, float]:
    return {
        name: value
        for name, value in row.items()
        if type(value) in (int, float) and math.isfinite(value) and name not in left_out
    }


def test_names_and_values_are_the_columns_of_the_database(storage: Storage) -> None:
    show(storage, tracked(RECORDER), 0, 1, 2)
    got = dict(KEPT["first"].values)
    assert sorted(got) == [0, 1, 2]
    for row in rows(storage, "v_iterations"):
        own = {name: value for name, value in got[row["iteration"]].items() if "/" not in name}
        assert own == numbers(row)
    expected = {
        (row["iteration"], f"evaluations/{row['dataset']}/{row['split']}/{row['mode']}/{name}"): value
        for row in rows(storage, "evaluations")
        for name, value in numbers(row, "iteration").items()
    }
    assert len(expected) == 2 * 10  # The start and the end, each greedy.
    assert {(step, n): v for step, values in got.items() for n, v in values.items() if "/" in n} == expected
    names = {name.rpartition("/")[2] for values in got.values() for name in values}
    tables = {table.name: {column.name for column in table.columns} for table in describe_tables()}
    assert names <= tables["v_iterations"] | tables["evaluations"]
    assert {"reward_mean", "em", "mean_jsd", "grad_norm_ratio", "update_s", "greedy_em", "valid_share"} <= names


def test_a_column_that_is_added_is_tracked_without_a_second_edit(storage: Storage) -> None:
    with storage.database.transaction() as connection:
        connection.execute("ALTER TABLE evaluations ADD COLUMN added DOUBLE DEFAULT 7.5")
    try:
        steps = read_steps(storage, "first", 0, 2, 0)
    finally:
        with storage.database.transaction() as connection:
            connection.execute("ALTER TABLE evaluations DROP COLUMN added")
    assert steps is not None
    assert steps[0].values["evaluations/world/dev/greedy/added"] == 7.5


def test_rollouts_come_as_conversations(storage: Storage) -> None:
    show(storage, tracked(RECORDER, more=["tracking.rollouts=3"]), 1, 2)
    traces = dict(KEPT["first"].traces)
    assert {step: len(of_step) for step, of_step in traces.items()} == {1: 3, 2: 3}
    by_id = {row["rollout_id"]: row for row in rows(storage, "v_rollouts")}
    for trace in (trace for of_step in traces.values() for trace in of_step):
        row = by_id[trace.rollout_id]
        assert trace.messages[0].content == row["question"]
        assert [message.role for message in trace.messages[:2]] == ["user", "assistant"]
        assert trace.facts["reward"] == row["reward"]
        assert trace.facts["golden_answers"] == " | ".join(row["golden_answers"])
        turns = storage.database.query("SELECT text, turn FROM turns WHERE rollout_id = $id", {"id": trace.rollout_id})
        said = [message.content for message in trace.messages if message.role == "assistant"]
        assert said == [row["text"] for row in sorted(turns.to_pylist(), key=lambda row: row["turn"])]
    spread = {row["group_id"]: row["reward_std"] for row in rows(storage, "groups")}
    chosen = [spread[by_id[trace.rollout_id]["group_id"]] for trace in traces[2]]
    assert max(chosen) == max(value for group, value in spread.items() if group.startswith("00002"))


def test_a_run_gives_its_settings_without_passwords(storage: Storage) -> None:
    show(storage, tracked(RECORDER), 2)
    (run,) = KEPT["first"].opened
    assert (run.name, run.kind, run.settings["iterations"]) == ("first", "a run that trains", 2)
    assert run.folder == storage.workspace.root / "tracking"
    urls = {"retrieval": {"urls": ["http://me:secret@host:80/x", "http://host/a@b"]}}
    assert without_passwords(urls) == {"retrieval": {"urls": ["http://host:80/x", "http://host/a@b"]}}


@pytest.mark.parametrize("knows", [False, True])
def test_nothing_comes_twice_and_nothing_is_missing(storage: Storage, knows: bool) -> None:
    options = f"{{'{RECORDER}' = {{knows = {str(knows).lower()}}}}}"
    settings = tracked(RECORDER, options=options)
    show(storage, settings, 0, 1)
    kept = read_run_tracking(storage.workspace, "first").trackers[RECORDER]
    assert kept == TrackerRun(id="recorder first", last_step=1)
    if knows:  # Killed after the tracker had taken a step and before that was kept.
        behind = kept.model_copy(update={"last_step": 0})
        write_run_tracking(storage.workspace, "first", RunTracking(trackers={RECORDER: behind}))
    show(storage, settings, 1, 2)
    got = KEPT["first"]
    assert [step for step, _ in got.values] == [0, 1, 2]
    assert [run.tracker_id for run in got.opened] == [None, "recorder first"]
    assert got.closed == ["done", "done"]


def test_a_tracker_that_begins_late_gets_everything(storage: Storage) -> None:
    show(storage, tracked(RECORDER), 2)
    assert [step for step, _ in KEPT["first"].values] == [0, 1, 2]


def test_a_tracker_that_raises_is_off_and_told_once(storage: Storage) -> None:
    heard = show(storage, tracked(RAISING, RECORDER), 0, 1, 2)
    first, last = heard.warnings
    assert first.startswith(
        f"tracker '{RAISING}' is off for this run, after iteration 0: ConnectionError: the server is gone; the run"
    )
    assert last == f"tracker '{RAISING}' got 1 of 3 iterations of this run"
    assert [step for step, _ in KEPT["first"].values] == [0, 1, 2]
    assert read_run_tracking(storage.workspace, "first").trackers[RAISING].last_step == 0


@pytest.mark.parametrize("at", ["open", "log", "close"])
def test_a_tracker_that_never_returns_is_left(storage: Storage, at: str) -> None:
    options = f"{{'{HANGING}' = {{at = '{at}'}}}}"
    settings = tracked(HANGING, RECORDER, options=options, more=["tracking.close_timeout_s=0.3"])
    start = time.monotonic()
    heard = show(storage, settings, 0, 1, 2)
    assert time.monotonic() - start < 3
    assert "it has not ended within 0.3 s (tracking.close_timeout_s)" in heard.warnings[0]
    counted = [text for text in heard.warnings if " of 3 iterations" in text]
    assert len(counted) == (0 if at == "close" else 1)
    assert [step for step, _ in KEPT["first"].values] == [0, 1, 2]


def test_a_tracker_that_is_too_far_behind_is_off(storage: Storage) -> None:
    settings = tracked(HANGING, more=["tracking.max_waiting=1", "tracking.close_timeout_s=0.2"])
    heard = show(storage, settings, 0, 1, 2)
    assert "before it got anything: it is too slow: 1 iterations wait for it" in heard.warnings[0]
    assert len([text for text in heard.warnings if "is off" in text]) == 1


def test_how_a_run_ended_is_told(storage: Storage) -> None:
    for error, ended in ((UserError("refused"), "failed"), (KeyboardInterrupt(), "interrupted")):
        record = storage.ledger.get_run("first")
        with pytest.raises(type(error)), open_tracking(tracked(RECORDER), record, storage, Heard()):
            raise error
        assert KEPT["first"].closed[-1] == ended


def test_damaged_notes_begin_anew(storage: Storage) -> None:
    path = storage.workspace.run_folder("first") / "tracking.json"
    path.write_text("{", encoding="utf-8")
    assert read_run_tracking(storage.workspace, "first") == RunTracking()


@pytest.mark.slow
def test_a_run_ends_with_the_same_weights_whatever_its_trackers_do(folder: Path, storage: Storage) -> None:
    options = f"{{'{HANGING}' = {{at = 'log'}}, '{RAISING}' = {{at = 1}}}}"
    settings = tracked(HANGING, RAISING, RECORDER, options=options, more=["tracking.close_timeout_s=0.2"])
    heard = Heard()
    train_plain(settings, "second", folder, heard)
    second, first = (open_storage(folder).ledger.get_run(name) for name in ("second", "first"))
    assert (second.status, second.policy_sha256) == ("done", first.policy_sha256)
    assert second.settings_hash == first.settings_hash
    assert [step for step, _ in KEPT["second"].values] == [0, 1, 2]
    assert len([text for text in heard.warnings if "is off for this run" in text]) == 2
    hashes = [
        {(s.iteration, s.stage): s.input_hash for _, h in storage.ledger.histories(name) for s in h.attempts}
        for name in ("first", "second")
    ]
    assert hashes[0] == hashes[1], "no stage reads the trackers' settings"


@pytest.mark.slow
def test_a_finished_run_is_sent_to_trackers_that_are_named_afterwards(folder: Path, storage: Storage) -> None:
    before = storage.ledger.get_run("first")
    train_plain(tracked(RECORDER), "first", folder, SilentReporter())
    assert [step for step, _ in KEPT["first"].values] == [0, 1, 2]
    after = open_storage(folder).ledger.get_run("first")
    assert (after.policy_sha256, after.settings_hash) == (before.policy_sha256, before.settings_hash)
    assert RECORDER in after.settings_json
