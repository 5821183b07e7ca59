"""A study's trainings on a work pool: what is submitted, again, and not twice; by a server that is made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType

from flows.console.errors import UserError
from flows.orchestration import pool as pools
from flows.orchestration.pool import OnPool, attempt_key
from flows.orchestration.train_flow import workspace_folder
from flows.run.records import new_run
from flows.study.plan import PlannedRun, load_study, plan_runs
from flows.study.trainings import RunFailure
from schemas.records.run_kind import TrainingKind
from schemas.records.study import Study
from storage.runs.lock import RunLock
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.studies import TWINS, study_toml

LONG_AGO = datetime.now(UTC) - timedelta(hours=1)


class Server:
    """Keeps flow runs by their keys; `at_sleep` is what happens to them between two looks."""

    def __init__(self) -> None:
        self.by_key: dict[str, FlowRun] = {}
        self.submitted: list[dict[str, Any]] = []
        self.at_sleep: Iterator[Callable[[], None]] = iter(())

    def run_deployment(self, name: str, *, idempotency_key: str, timeout: float, **asked: Any) -> FlowRun:
        assert (name, timeout) == ("sdsearch/train", 0)
        self.submitted.append(asked)
        made = FlowRun(id=uuid4(), flow_id=uuid4(), state=State(type=StateType.SCHEDULED))
        return self.by_key.setdefault(idempotency_key, made)

    def read_flow_run(self, flow_run_id: UUID) -> FlowRun:
        (found,) = [one for one in self.by_key.values() if one.id == flow_run_id]
        return found

    def set_flow_run_state(self, flow_run_id: UUID, state: State[Any], force: bool) -> None:
        assert force
        self.read_flow_run(flow_run_id).state = state

    def set(self, key: str, state: StateType, message: str = "", timestamp: datetime | None = None) -> None:
        self.by_key[key].state = State(type=state, message=message, timestamp=timestamp or datetime.now(UTC))

    def sleep(self, seconds: float) -> None:
        next(self.at_sleep)()

    @contextmanager
    def client(self, *, sync_client: bool) -> Iterator[Server]:
        yield self


class Case:
    """A study of two runs in a workspace, of which the first is submitted."""

    def __init__(self, folder: Path, server: Server) -> None:
        path = folder / "twins.toml"
        path.write_text(study_toml("twins", TWINS), encoding="utf-8")
        self.server = server
        self.workspace = Workspace.open(folder / "workspace")
        self.study: Study = load_study(str(path), self.workspace)
        self.plan: PlannedRun = plan_runs(self.study)[0]
        self.told: list[str] = []

    def key(self, attempt: int = 1) -> str:
        return attempt_key(self.workspace, self.plan.run, attempt)

    def finish(self, attempt: int = 1) -> None:
        """The run is done, and its flow run is completed."""
        record = new_run(self.plan.run, self.plan.settings, TrainingKind())
        Storage(self.workspace).create_run(record.model_copy(update={"status": "done"}))
        self.server.set(self.key(attempt), StateType.COMPLETED)

    def crash(self, attempt: int = 1) -> None:
        self.server.set(self.key(attempt), StateType.CRASHED, "killed")

    def carry_out(self, *at_sleep: Callable[[], None]) -> list[RunFailure]:
        self.server.at_sleep = iter(at_sleep)
        on_pool = OnPool(self.study, self.workspace, "gym", self.told.append)
        failures = on_pool.carry_out([self.plan], [])
        assert next(self.server.at_sleep, None) is None, "it waited until everything had happened"
        return failures


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    server = Server()
    monkeypatch.setattr(pools, "check_pool", lambda pool: "process")
    monkeypatch.setattr(pools, "run_deployment", server.run_deployment)
    monkeypatch.setattr(pools, "get_client", server.client)
    monkeypatch.setattr("flows.orchestration.pool.time.sleep", server.sleep)
    return Case(tmp_path, server)


def test_a_training_is_submitted_once_and_waited_for_by_whoever_asks(case: Case) -> None:
    def dies() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.carry_out(dies)
    assert case.carry_out(case.finish) == []
    assert len(case.server.by_key) == 1
    asked = case.server.submitted[0]
    assert asked["flow_run_name"] == asked["parameters"]["run"] == case.plan.run
    assert asked["parameters"]["config"] == "tiny"
    assert asked["parameters"]["overrides"] == list(case.plan.overrides)
    assert asked["parameters"]["workspace"] == str(case.workspace.root)
    assert case.told[-1].startswith(f"run {case.plan.run} done in ")


def test_a_crash_is_submitted_again_and_a_failure_is_told(case: Case) -> None:
    assert case.carry_out(case.crash, lambda: case.finish(2)) == []
    assert len(case.server.by_key) == 2
    assert f"run {case.plan.run}: its process died; submitted again, attempt 2" in case.told


def test_what_dies_again_and_again_is_given_up(case: Case) -> None:
    (failure,) = case.carry_out(case.crash, lambda: case.crash(2), lambda: case.crash(3))
    assert failure.reason.startswith("its process died 3 times, at last: killed (flow run ")


@pytest.mark.parametrize("state", [StateType.FAILED, StateType.CANCELLED])
def test_what_failed_is_told_and_submitted_again_by_the_next_study(case: Case, state: StateType) -> None:
    (failure,) = case.carry_out(lambda: case.server.set(case.key(), state, "bad luck"))
    assert failure.run == case.plan.run
    assert failure.reason.startswith("bad luck (flow run ")
    assert case.carry_out(lambda: case.finish(2)) == []
    assert list(case.server.by_key) == [case.key(1), case.key(2)]


def test_a_completed_flow_run_that_left_no_run_here_is_no_success(case: Case) -> None:
    (failure,) = case.carry_out(lambda: case.server.set(case.key(), StateType.COMPLETED))
    assert "the pool's workers must see the same folder at the same path" in failure.reason


def test_a_flow_run_that_stands_as_running_is_dead_once_its_lock_is_free_for_long(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("flows.orchestration.pool.time.monotonic", lambda: now)

    def later() -> None:
        nonlocal now
        now += 100

    lock = RunLock(case.workspace, case.plan.run)

    def runs() -> None:
        lock.__enter__()
        later()
        case.server.set(case.key(), StateType.RUNNING, timestamp=LONG_AGO)

    def dies() -> None:
        lock.__exit__(None, None, None)
        later()

    seen: list[StateType] = []

    def look() -> None:
        later()
        seen.append(case.server.by_key[case.key()].state.type)  # type: ignore[union-attr]

    def finished() -> None:
        seen.append(case.server.by_key[case.key()].state.type)  # type: ignore[union-attr]
        case.finish(2)

    # The lock is held; it is found free; it was free for long.
    assert case.carry_out(runs, look, dies, look, finished) == []
    assert seen == [StateType.RUNNING, StateType.RUNNING, StateType.CRASHED]


def test_a_run_that_never_showed_in_the_workspace_is_not_taken_for_dead(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10**6, 1000))
    monkeypatch.setattr("flows.orchestration.pool.time.monotonic", lambda: float(next(clock)))
    runs = lambda: case.server.set(case.key(), StateType.RUNNING, timestamp=LONG_AGO)  # noqa: E731
    assert case.carry_out(runs, runs, runs, case.finish) == []
    assert len(case.server.by_key) == 1


def test_a_process_that_was_taken_and_never_began_is_dead_and_a_container_is_waited_for(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    pends = lambda: case.server.set(case.key(), StateType.PENDING, timestamp=LONG_AGO)  # noqa: E731
    monkeypatch.setattr(pools, "check_pool", lambda pool: "kubernetes")
    assert case.carry_out(pends, pends, case.finish) == []
    assert len(case.server.by_key) == 1
    (case.workspace.run_folder(case.plan.run) / "run.json").unlink()
    case.server.by_key.clear()
    monkeypatch.setattr(pools, "check_pool", lambda pool: "process")
    assert case.carry_out(pends, lambda: case.finish(2)) == []
    assert list(case.server.by_key) == [case.key(1), case.key(2)]


def test_attempts_of_other_workspaces_have_other_keys(tmp_path: Path) -> None:
    here, there = Workspace.open(tmp_path / "a"), Workspace.open(tmp_path / "b")
    keys = {attempt_key(where, run, n) for where in (here, there) for run in ("r", "s") for n in (1, 2)}
    assert len(keys) == 8


def test_a_workspace_that_the_deployment_left_open_is_refused() -> None:
    with pytest.raises(UserError, match="SDSEARCH_HOME was not set when the flows were deployed"):
        workspace_folder("{{ $SDSEARCH_HOME }}")
    assert workspace_folder("/shared") == Path("/shared")
