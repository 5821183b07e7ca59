"""The trainings of a study on a work pool: each a flow run of the deployment `sdsearch/train`, done by its workers.

The run's name and the number of the attempt are the flow run's idempotency key: a study that is started again finds the
flow runs that it submitted, and submits a run again only when its last flow run has ended without finishing it. The
run's lock and its ledger, in the workspace that all share, keep a run from being trained twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, assert_never
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from flows.console.errors import UserError
from flows.console.terminal import format_seconds
from flows.orchestration.prefect_server import check_named_server, set_environment
from flows.orchestration.recovery import RUN_FLOW, is_of_server
from flows.study.plan import PlannedRun
from flows.study.trainings import RunFailure, title_line
from schemas.base import hash_json
from schemas.commands import quoted
from schemas.records.study import Study
from storage.errors import RunNotFoundError
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.runs.lock import lock_holder
from storage.workspace import Workspace

TRAIN_DEPLOYMENT: Final = f"{RUN_FLOW}/train"
_POLL_S: Final = 2.0
# How long a run's lock may be free while its flow run stands as running: the flow's begin and its end lie without it.
_FREE_LOCK_S: Final = 60.0
# How long a process worker may take from taking a flow run to its first words: it loads torch.
_PENDING_S: Final = 300.0
_MAX_CRASHES: Final = 3


@dataclass
class _Submitted:
    """A training on the pool, as far as it is known here; `free_since`: since when nobody holds its run's lock."""

    plan: PlannedRun
    attempt: int
    flow_run: FlowRun
    started: float = field(default_factory=time.monotonic)
    num_crashes: int = 0
    free_since: float | None = None

    @property
    def state(self) -> State[Any]:
        """Where its flow run stands."""
        assert self.flow_run.state is not None, "the server gives every flow run a state"
        return self.flow_run.state


class OnPool:
    """Submits the trainings of a study to a work pool, all at once, and waits until they have ended.

    The pool's concurrency limit says how many run at one time. An interrupt leaves them to the pool's workers.
    """

    def __init__(
        self,
        study: Study,
        workspace: Workspace,
        pool: str,
        tell: Callable[[str], None],
        figures_of: Callable[[PlannedRun], str] = lambda plan: "",
    ) -> None:
        """Raise UserError when there is no server, no such pool, or `sdsearch/train` is not deployed to it."""
        self._pool_type = check_pool(pool)
        self._study = study
        self._workspace = workspace
        self._pool = pool
        self._tell = tell
        self._figures_of = figures_of
        self._ledger = Ledger(ArtifactStore(workspace))
        self._is_told_silent = False

    def carry_out(self, planned: Sequence[PlannedRun], finished: Collection[str]) -> list[RunFailure]:
        """As of `Trainings`."""
        submitted: list[_Submitted] = []
        for number, plan in enumerate(planned, 1):
            title = title_line(self._study, plan, number)
            if plan.run in finished:
                self._tell(f"{title}, finished already")
            else:
                submitted.append(self._submit(plan))
                self._tell(f"{title}: on work pool {self._pool}, attempt {submitted[-1].attempt}")
        failures: list[RunFailure] = []
        while submitted:
            for training in list(submitted):
                if (reason := self._look_at(training)) is not None:
                    submitted.remove(training)
                    failures += self._told(training, reason)
            if submitted:
                time.sleep(_POLL_S)
        return failures

    def _submit(self, plan: PlannedRun, attempt: int = 1) -> _Submitted:
        """Return the first attempt, from `attempt` on, whose flow run has not ended; made where there is none."""
        parameters = {
            "config": plan.config,
            "run": plan.run,
            "overrides": list(plan.overrides),
            "workspace": str(self._workspace.root),
        }
        while True:
            flow_run = run_deployment(
                TRAIN_DEPLOYMENT,
                parameters=parameters,
                flow_run_name=plan.run,
                idempotency_key=attempt_key(self._workspace, plan.run, attempt),
                timeout=0,
            )
            assert isinstance(flow_run, FlowRun), "outside an event loop the call returns the flow run itself"
            if flow_run.state is not None and not flow_run.state.is_final():
                return _Submitted(plan, attempt, flow_run)
            attempt += 1

    def _look_at(self, training: _Submitted) -> str | None:
        """Return None while a training goes on, "" when it is done, and otherwise why it ended."""
        try:
            with get_client(sync_client=True) as client:
                training.flow_run = client.read_flow_run(training.flow_run.id)
        except Exception as error:
            if not is_of_server(error):
                raise
            self._tell_silent()
            return None
        self._is_told_silent = False
        match training.state.type:
            case StateType.COMPLETED:
                return "" if self._is_done(training.plan) else _not_shared(self._workspace)
            case StateType.FAILED | StateType.CANCELLED:
                return _what_was_said(training)
            case StateType.CRASHED:
                return self._again(training)
            case StateType.RUNNING | StateType.PENDING if self._is_dead(training):
                if self._is_done(training.plan):
                    return ""
                _set_crashed(training.flow_run.id)
                return self._again(training)
            case StateType.RUNNING | StateType.PENDING | StateType.SCHEDULED | StateType.PAUSED | StateType.CANCELLING:
                return None
            case unknown:
                assert_never(unknown)

    def _again(self, training: _Submitted) -> str | None:
        """Submit a training again whose process died; return why not where it died too often."""
        training.num_crashes += 1
        if training.num_crashes >= _MAX_CRASHES:
            return f"its process died {training.num_crashes} times, at last: {_what_was_said(training)}"
        following = self._submit(training.plan, training.attempt + 1)
        self._tell(f"run {training.plan.run}: its process died; submitted again, attempt {following.attempt}")
        training.attempt, training.flow_run, training.free_since = following.attempt, following.flow_run, None
        return None

    def _is_dead(self, training: _Submitted) -> bool:
        """True when no process is behind a flow run that stands as running, or as about to run.

        The run's lock is the proof, once it was there: the process of another machine, whose death nobody can tell from
        here, counts as its holder. What waits for a machine or a container may stay pending for long.
        """
        stands_s = (datetime.now(UTC) - training.state.timestamp).total_seconds()
        if training.state.type == StateType.PENDING:
            return self._pool_type == "process" and stands_s > _PENDING_S
        is_free = self._workspace.lock(training.plan.run).exists() and not lock_holder(
            self._workspace, training.plan.run
        )
        training.free_since = (training.free_since or time.monotonic()) if is_free else None
        freed_s = time.monotonic() - training.free_since if training.free_since else 0.0
        return min(freed_s, stands_s) > _FREE_LOCK_S

    def _is_done(self, plan: PlannedRun) -> bool:
        try:
            return self._ledger.get_run(plan.run).status == "done"
        except RunNotFoundError:
            return False

    def _told(self, training: _Submitted, reason: str) -> Iterator[RunFailure]:
        run = training.plan.run
        if not reason:
            took = format_seconds(time.monotonic() - training.started)
            self._tell(f"run {run} done in {took}{self._figures_of(training.plan)}")
        else:
            self._tell(f"run {run} failed: {reason}")
            yield RunFailure(run, reason)

    def _tell_silent(self) -> None:
        if not self._is_told_silent:
            self._tell("the Prefect server does not answer; the trainings go on without it, this waits for it")
        self._is_told_silent = True


def attempt_key(workspace: Workspace, run: str, attempt: int) -> str:
    """Return the idempotency key of an attempt at a run: the server makes one flow run of it, however often asked."""
    return f"{run}-{attempt}-{hash_json(str(workspace.root))[:12]}"


def check_pool(pool: str) -> str:
    """Return the type of a work pool that trainings can be submitted to; UserError, with the remedy, else."""
    set_environment()
    if check_named_server() is None:
        raise UserError(
            f"--pool {pool}: no Prefect server is named; set PREFECT_API_URL to the one that the pool's workers use "
            "(docs/how-to/prefect.md)"
        )
    with get_client(sync_client=True) as client:
        try:
            found = client.read_work_pool(pool)
        except ObjectNotFound as error:
            raise UserError(
                f"--pool {pool}: the Prefect server {client.api_url} has no such work pool; make it with: prefect "
                f"work-pool create {quoted(pool)} --type process"
            ) from error
        try:
            deployed = client.read_deployment_by_name(TRAIN_DEPLOYMENT).work_pool_name
        except ObjectNotFound:
            deployed = None
    if deployed != pool:
        where = f"is on work pool {deployed}" if deployed else "is on no work pool"
        raise UserError(
            f"--pool {pool}: the deployment {TRAIN_DEPLOYMENT} {where}; put it there, in the folder that has "
            f"prefect.yaml, with: PREFECT_DEFAULT_WORK_POOL_NAME={quoted(pool)} prefect deploy --all"
        )
    return str(found.type)


def _what_was_said(training: _Submitted) -> str:
    state = training.state
    return f"{state.message or state.name} (flow run {training.flow_run.id})"


def _not_shared(workspace: Workspace) -> str:
    return (
        f"its flow run is completed, but the run is not done in {workspace.root}; the pool's workers must see the same "
        "folder at the same path"
    )


def _set_crashed(flow_run_id: UUID) -> None:
    with get_client(sync_client=True) as client:
        state: Any = Crashed(message="The process died: no process holds the lock of its run.")
        client.set_flow_run_state(flow_run_id, state, force=True)
