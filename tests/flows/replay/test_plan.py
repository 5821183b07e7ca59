"""What a replay can be asked for, and what it is told that it cannot have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.console.errors import UserError
from flows.replay.plan import (
    ReplayPlan,
    check_replayable,
    format_iterations,
    parse_iterations,
    plan_replay,
    requested_changes,
)
from flows.settings.load import load_settings
from flows.training.checkpoints import retain_checkpoints
from schemas.records.ledger import RunRecord, StageKey
from schemas.settings.root import Settings
from storage.runs.ledger import finish
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.records import make_run


def source_run(*overrides: str) -> RunRecord:
    settings = load_settings("tiny", ["iterations=9", "storage.keep_checkpoints=2", *overrides])
    changes = {"settings_json": settings.model_dump_json(), "settings_hash": settings.content_hash()}
    return make_run("first").model_copy(update=changes)


def settings_of(source: RunRecord, *overrides: str) -> Settings:
    return plan_replay(source, "1", overrides, None).settings


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A run that has sampled four iterations and kept the weights of versions 2 and 3."""
    storage = Storage(Workspace.open(tmp_path))
    storage.create_run(source_run())
    for iteration in (1, 2, 3, 4):
        for stage in ("sample", "score"):
            key = StageKey.model_validate({"run": "first", "iteration": iteration, "stage": stage})
            storage.ledger.commit(finish(storage.ledger.begin(key, "a", 0), []))
    for version in (2, 3):
        storage.checkpoints.write("first", version, lambda folder: (folder / "weights").touch())
    return storage


def test_a_range_has_both_its_ends() -> None:
    assert parse_iterations("3:8") == (3, 8)
    assert parse_iterations(" 4 ") == (4, 4)
    assert list(plan_replay(source_run(), "2:4", [], None).iterations) == [2, 3, 4]


@pytest.mark.parametrize("text", ["", "0:3", "3:2", "3-8", "a", "1:", ":2", "-1", "1:2:3", "1,2"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"--iterations {text}: expected FIRST:LAST"):
        parse_iterations(text)


def test_iterations_as_people_name_them() -> None:
    assert format_iterations([5, 1, 2, 3, 8, 7]) == "1:3, 5, 7:8"
    assert format_iterations([]) == ""


def test_a_replay_asks_the_teacher_in_every_iteration() -> None:
    settings = settings_of(source_run("distillation.warmup_iterations=7"), "hindsight.labels=shuffled")
    assert settings.hindsight.labels == "shuffled"
    assert [settings.alpha_at(iteration) for iteration in (1, 9)] == [0.1, 0.1]
    faded = settings_of(source_run("distillation.schedule={kind='linear', iterations=1}"))
    assert faded.alpha_at(9) == 0.1
    plain = source_run("distillation.enabled=false", "distillation.alpha=0", "distillation.warmup_iterations=50")
    assert settings_of(plain).alpha_at(1) > 0
    assert settings_of(plain, "distillation.enabled=true") == settings_of(plain)


@pytest.mark.parametrize(
    "override",
    [
        "hindsight.masking=none",
        "hindsight.rho=0.5",
        "distillation.positions=completion",
        "distillation.gate=outcome",
        "distillation.gate_options.sharpness=2.0",
        "distillation.support=student",
        "distillation.top_k=7",
        "update.head_chunk=9",
        "seed=0",
    ],
)
def test_what_the_teacher_reads_can_be_changed_and_what_stays_is_no_change(override: str) -> None:
    assert settings_of(source_run(), override)


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("seed=1", "takes the rollouts of run 'first' as they are"),
        ("reward.metric=em", "takes the rollouts of run 'first' as they are"),
        ("rollout.temperature=0.5", "takes the rollouts of run 'first' as they are"),
        ("update.learning_rate=1", "takes the rollouts of run 'first' as they are"),
        ("distillation.alpha=0.5", "a replay trains nothing"),
        ("distillation.warmup_iterations=3", "a replay trains nothing"),
        ("distillation.enabled=false", "a replay trains nothing"),
        ("distillation.form=advantage", "a replay trains nothing"),
        ("distillation.clip=own", "a replay trains nothing"),
        ("distillation.schedule={kind='linear'}", "a replay trains nothing"),
        ("distillation.strength={kind='gradient_share'}", "a replay trains nothing"),
        ("hindsight.lables=none", "did you mean 'hindsight.labels'?"),
        ("hindsight.labels=guessed", "got 'guessed'"),
    ],
)
def test_what_it_cannot_change_is_refused_with_a_reason(override: str, why: str) -> None:
    with pytest.raises(UserError) as caught:
        settings_of(source_run(), override)
    assert why in str(caught.value)
    assert override.partition("=")[0] in str(caught.value)


def test_the_same_request_has_the_same_name_and_any_other_another() -> None:
    def name(iterations: str, *overrides: str) -> str:
        return plan_replay(source_run(), iterations, overrides, None).run

    names = [name("1:2"), name("1:3"), name("1:2", "hindsight.labels=none"), name("1:2", "hindsight.rho=0.1")]
    assert len(set(names)) == 4
    assert name("1:2") == names[0]
    assert names[0].startswith("first-replay-")


def test_what_can_be_replayed_is_named(storage: Storage) -> None:
    def problem(iterations: str) -> str:
        with pytest.raises(UserError) as caught:
            check_replayable(storage, plan_replay(source_run(), iterations, [], None))
        return str(caught.value)

    check_replayable(storage, plan_replay(source_run(), "3:4", [], None))
    check_replayable(storage, plan_replay(source_run(), "1", [], None))
    gone = problem("1:3")
    assert "the weights any more that sampled iterations 2: it keeps the newest 2 checkpoints" in gone
    assert "what can be replayed: 1, 3:4" in gone
    assert "storage.keep_checkpoints" in gone
    assert "no rollouts of iterations 5:8; what can be replayed: 1, 3:4" in problem("3:8")


def test_checkpoints_that_an_unfinished_replay_needs_stay(storage: Storage) -> None:
    plan = plan_replay(source_run(), "3", [], "shown")
    replay = source_run().model_copy(update={"run": plan.run, "kind": plan.kind})
    storage.create_run(replay)
    settings = load_settings("tiny", ["storage.keep_checkpoints=2"])
    retain_checkpoints(storage, settings, "first", 8)
    assert storage.checkpoints.versions("first") == [2]
    storage.update_run(replay.model_copy(update={"status": "done"}))
    retain_checkpoints(storage, settings, "first", 8)
    assert storage.checkpoints.versions("first") == []


def test_a_plan_says_its_iterations() -> None:
    plan = plan_replay(source_run(), "2:3", [], "shown")
    assert plan == ReplayPlan("shown", "first", 2, 3, plan.settings)


def test_trackers_are_no_change_and_a_run_of_before_them_can_be_replayed() -> None:
    source = source_run()
    values = json.loads(source.settings_json)
    del values["tracking"]
    former = source.model_copy(update={"settings_json": json.dumps(values)})
    plan = plan_replay(former, "2", ["hindsight.labels=none", "tracking.sinks=['tensorboard']"], None)
    assert plan.settings.tracking.sinks == ("tensorboard",)
    assert requested_changes(former, plan.settings) == "hindsight.labels: outcome -> none"
    assert plan.run == plan_replay(source, "2", ["hindsight.labels=none"], None).run
