"""Runs that go wrong: said once, kept with the run, ended or continued from the best policy, the same after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import flows.training.rollback
from flows.app import app
from flows.console.errors import UserError
from flows.orchestration import alarms as published
from flows.settings.load import load_settings
from flows.training.job import open_job, open_storage
from flows.training.loop import RunHooks, drive
from flows.training.rollback import best_version, num_rollbacks
from schemas.records.ledger import RunRecord, RunWarning
from schemas.records.run_kind import ForkKind
from schemas.settings.root import Settings
from tests.flows.training.test_nothing_learnt import Listener
from tests.flows.training.test_training import rows

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

# EM rises with the first update; the learning rate is too high for those that follow.
WILD = (
    "iterations=3",
    "update.learning_rate=3e-3",
    "evaluation.every=1",
    "evaluation.num_questions=12",
    "evaluation.modes=['greedy']",
    "distillation.enabled=false",
    "model.torch_threads=1",
    "alarms.em_fall=1.2",
)
ROLLBACK = (*WILD, "alarms.on_alarm=rollback", "alarms.rollback_learning_rate=0.001")


def wild(*changes: str) -> Settings:
    return load_settings("tiny", [*WILD, *changes])


class Hooks(RunHooks):
    """Keeps what a run tells of its alarms, and who goes on."""

    def __init__(self) -> None:
        self.alarms: list[RunWarning] = []
        self.successors: list[str] = []

    def alarmed(self, alarm: RunWarning) -> None:
        self.alarms.append(alarm)

    def goes_on(self, job: Any) -> None:
        self.successors.append(job.run)


def train(workspace: Path, run: str, settings: Settings | None) -> tuple[list[str], Hooks]:
    """Train, or go on with stored settings, and return the warnings and what the hooks were told."""
    listener, hooks = Listener(), Hooks()
    drive(open_job(run, workspace, settings), listener, hooks)
    return listener.warnings, hooks


def record_of(workspace: Path, run: str) -> RunRecord:
    return open_storage(workspace).ledger.get_run(run)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alarms")


@pytest.fixture(scope="module")
def warned(workspace: Path) -> tuple[list[str], Hooks]:
    """Run 'warned' to its end, in spite of its alarm."""
    return train(workspace, "warned", wild())


@pytest.fixture(scope="module")
def rolled(workspace: Path) -> tuple[list[str], Hooks]:
    """Run 'rolled', whose fork went on from its best policy."""
    return train(workspace, "rolled", load_settings("tiny", ROLLBACK))


def alarm_of(workspace: Path, run: str) -> RunWarning:
    return next(warning for warning in record_of(workspace, run).warnings if warning.kind == "em_fell")


def test_an_alarm_is_said_once_and_kept(workspace: Path, warned: tuple[list[str], Hooks]) -> None:
    said, hooks = warned
    alarm = alarm_of(workspace, "warned")
    assert said == [f"alarm: {each.text}" for each in record_of(workspace, "warned").warnings]
    assert hooks.alarms == list(record_of(workspace, "warned").warnings)
    assert record_of(workspace, "warned").status == "done"
    em = {row["updates_done"]: row["em"] for row in rows(workspace, "evaluations", "warned")}
    assert alarm.compared_with == max(em[updates] for updates in em if updates < alarm.iteration)
    assert alarm.value == em[alarm.iteration]
    assert train(workspace, "warned", None)[0] == []
    shown = " ".join(CliRunner().invoke(app, ["show", "warned", "--workspace", str(workspace)]).output.split())
    assert f"warning after {alarm.iteration} updates: dev EM fell from" in shown
    kept = {row["kind"]: row for row in rows(workspace, "warnings", "warned")}["em_fell"]
    assert (kept["iteration"], kept["value"], kept["compared_with"], kept["text"]) == (
        alarm.iteration,
        alarm.value,
        alarm.compared_with,
        alarm.text,
    )


def test_a_run_stops_again_and_goes_on_under_the_other_setting(
    workspace: Path, warned: tuple[list[str], Hooks]
) -> None:
    for settings in (wild("alarms.on_alarm=stop"), None):
        with pytest.raises(UserError, match=r"run 'stopped' ends here.*on_alarm is 'stop'.*alarms.on_alarm=warn"):
            train(workspace, "stopped", settings)
        assert record_of(workspace, "stopped").status == "failed"
        assert record_of(workspace, "stopped").iterations_done == alarm_of(workspace, "warned").iteration
    assert train(workspace, "stopped", wild())[0] == [], "no alarm is said twice"
    stopped, whole = record_of(workspace, "stopped"), record_of(workspace, "warned")
    assert (stopped.status, stopped.policy_sha256) == ("done", whole.policy_sha256)
    assert alarm_of(workspace, "stopped") == alarm_of(workspace, "warned")


def test_a_fork_goes_on_from_the_best_policy(workspace: Path, rolled: tuple[list[str], Hooks]) -> None:
    said, hooks = rolled
    assert hooks.successors == ["rolled-rollback-1"]
    source, fork = record_of(workspace, "rolled"), record_of(workspace, "rolled-rollback-1")
    em = {row["updates_done"]: row["em"] for row in rows(workspace, "evaluations", "rolled")}
    best = max(em, key=lambda updates: (em[updates], -updates))
    assert best == 1, "the test needs a best policy that is an update's"
    assert fork.kind == ForkKind(source="rolled", first_iteration=best + 1)
    assert (fork.status, fork.iterations_done, source.status) == ("done", 3, "failed")
    lowered = Settings.model_validate_json(fork.settings_json)
    assert lowered.update.learning_rate == pytest.approx(3e-6)
    assert lowered.model_copy(update={"update": Settings.model_validate_json(source.settings_json).update}) == (
        Settings.model_validate_json(source.settings_json)
    )
    assert source.warnings[-1].kind == "rolled_back"
    assert f"rolled back to version {best}: run 'rolled-rollback-1' goes on" in source.warnings[-1].text
    assert said[-1] == source.warnings[-1].text
    (history,) = (warning for warning in fork.warnings if warning.kind == "rolled_back")
    assert "from version 1 of run 'rolled'" in history.text
    # It begins with the policy that was best: the same questions, the same rollouts.
    forks = [row for row in rows(workspace, "rollouts", "rolled-rollback-1") if row["iteration"] == 2]
    assert forks == [row for row in rows(workspace, "rollouts", "rolled") if row["iteration"] == 2]


@pytest.mark.parametrize("stop_at", ["fork_run", "_note", "Said"])
def test_a_rollback_that_was_stopped_is_made_again(
    workspace: Path, rolled: tuple[list[str], Hooks], stop_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the fork is made, after it, and before either run's record says so; then the fork itself."""
    run = f"killed-{stop_at.strip('_').replace('_', '-')}"

    def fails(*_: Any, **__: Any) -> Any:
        raise UserError("drawn for the test")

    with monkeypatch.context() as patch:
        patch.setattr(flows.training.rollback, stop_at, fails)
        with pytest.raises(UserError, match="drawn for the test"):
            train(workspace, run, load_settings("tiny", ROLLBACK))
    assert alarm_of(workspace, run) == alarm_of(workspace, "rolled")
    train(workspace, run, None)
    again, fork = record_of(workspace, run), record_of(workspace, f"{run}-rollback-1")
    assert fork.policy_sha256 == record_of(workspace, "rolled-rollback-1").policy_sha256
    assert [w.kind for w in again.warnings] == [w.kind for w in record_of(workspace, "rolled").warnings]
    assert [w.kind for w in fork.warnings].count("rolled_back") == 1
    assert train(workspace, run, None)[0] == [], "what is done is not said again"


def test_a_model_that_every_update_spoils_begins_again_and_then_ends(workspace: Path) -> None:
    changes = ("iterations=2", "update.learning_rate=0.05", "alarms.on_alarm=rollback", "alarms.max_rollbacks=1")
    with pytest.raises(UserError, match=r"run 'spoilt-rollback-1' ends here.*alarms.max_rollbacks is 1"):
        train(workspace, "spoilt", wild(*changes, "alarms.em_fall=1"))
    again = record_of(workspace, "spoilt-rollback-1")
    assert again.kind.kind == "training"
    assert Settings.model_validate_json(again.settings_json).update.learning_rate == pytest.approx(0.025)
    assert best_version(open_storage(workspace), "spoilt") == 0
    assert (num_rollbacks("spoilt"), num_rollbacks("spoilt-rollback-1"), num_rollbacks("a-rollback-12")) == (0, 1, 12)


def test_tiny_gives_no_alarm(tmp_path: Path) -> None:
    listener = Listener()
    drive(open_job("tiny", tmp_path, load_settings("tiny")), listener)
    record = record_of(tmp_path, "tiny")
    assert (listener.warnings, record.warnings) == ([], ())
    assert record.policy_sha256.startswith("ae520b88e9284c13")


def test_prefect_has_an_event_and_an_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(published, "emit_event", lambda **event: told.update(event))
    monkeypatch.setattr(published, "create_markdown_artifact", lambda text, **options: told.update(options, text=text))
    alarm = RunWarning(kind="em_fell", iteration=4, text="dev EM fell", value=0.5, compared_with=0.75)
    published.publish_alarm("My run", alarm)
    assert (told["event"], told["payload"]) == ("sdsearch.alarm", alarm.model_dump(mode="json"))
    assert told["resource"]["prefect.resource.id"] == "sdsearch.run.My run"
    assert told["key"] == "my-run-alarm"
    assert "alarm after 4 updates" in told["text"]
    assert "dev EM fell" in told["text"]
