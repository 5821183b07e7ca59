"""Prefect's side of a death: flow runs that stand as running though no process is behind them any more.

The run's lock is the proof: who holds it knows that no other process works on the run, and a lock that nobody holds
says so of the process before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Crashed

from storage.runs.lock import held_runs
from storage.workspace import Workspace

logger = logging.getLogger(__name__)
R = TypeVar("R")
RUN_FLOW, STUDY_FLOW = "sdsearch", "sdsearch-study"
_ANSWER_DEADLINE_S = 10.0
# A process that has just begun loads its libraries before it takes the lock.
_LOADING = timedelta(seconds=60)


def server_error() -> Exception | None:
    """Return why Prefect's server does not answer, None when it does."""
    with get_client(httpx_settings={"timeout": _ANSWER_DEADLINE_S}, sync_client=True) as client:
        return client.api_healthcheck()


def is_of_server(error: BaseException) -> bool:
    """True when an error comes from a server that is gone, restarting or failing, and not from the work itself."""
    return isinstance(error, httpx.HTTPError) or server_error() is not None


class WhileItAnswers:
    """Does the parts of a run with Prefect while its server answers, and without it else.

    A part that its server's death interrupts is done again without it: what the ledger has costs milliseconds then.
    The names of parts that Prefect has not seen to their end are added to `unseen`.
    """

    def __init__(self, unseen: list[str]) -> None:
        self.answers = True
        self._unseen = unseen

    def do(self, what: str, with_prefect: Callable[..., R], plainly: Callable[..., R], *arguments: Any) -> R:
        """Return the part's result; errors of the work itself go on their way. `what` may name arguments: `{}`."""
        self.answers = self.answers or server_error() is None
        if self.answers:
            try:
                return with_prefect(*arguments)
            except Exception as error:
                if not is_of_server(error):
                    raise
                self.answers = False
                logger.warning("Prefect's server does not answer (%s); the run continues without it", error)
        self._unseen.append(what.format(*arguments))
        return plainly(*arguments)


def crash_former_runs(workspace: Workspace, run: str, own_id: UUID | None) -> int:
    """Set the flow runs of a run Crashed that Prefect takes for running, and return their number.

    The caller holds the run's lock, so no process is behind them; its own flow run is left out. Their sub-flows go
    the same way, so that nothing is left that cannot be retried.
    """
    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(any_=[run]))
        known = [one for one in _flow_runs(client, [RUN_FLOW], named) if _is_in(one, workspace)]
        stuck = [one for one in known if one.id != own_id and _is_running(one)]
        return _crash(client, [*stuck, *_running_below(client, known)])


def crash_abandoned_runs(workspace: Workspace, *, just_started: bool) -> int:
    """Set every flow run of this workspace Crashed that Prefect takes for running while nobody holds its run's lock.

    just_started: the server was not there a moment ago, so none of its flow runs is only about to take its lock.
    """
    held = {holder.run for holder in held_runs(workspace)}
    youngest = datetime.now(UTC) - (timedelta(0) if just_started else _LOADING)
    with get_client(sync_client=True) as client:
        stuck = [
            *(one for one in _flow_runs(client, [RUN_FLOW], _RUNNING) if one.name not in held),
            # A study that waits for a work pool holds no run itself.
            *(one for one in _flow_runs(client, [STUDY_FLOW], _RUNNING) if not held and not one.parameters.get("pool")),
        ]
        stuck = [one for one in stuck if _is_in(one, workspace) and one.state and one.state.timestamp <= youngest]
        return _crash(client, [*stuck, *_running_below(client, stuck)])


_RUNNING = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])))


def _flow_runs(client: SyncPrefectClient, flows: list[str], which: FlowRunFilter) -> list[FlowRun]:
    return client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=flows)), flow_run_filter=which)


def _running_below(client: SyncPrefectClient, parents: Iterable[FlowRun]) -> list[FlowRun]:
    """Return the running sub-flows, at any depth."""
    ids = [parent.id for parent in parents]
    if not ids:
        return []
    below = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=ids), state=_RUNNING.state)
    found = client.read_flow_runs(flow_run_filter=below)
    return [*found, *_running_below(client, found)]


def _crash(client: SyncPrefectClient, flow_runs: Iterable[FlowRun]) -> int:
    by_id = {one.id: one for one in flow_runs}
    for flow_run_id in by_id:
        state: Any = Crashed(message="The process died: no process holds the lock of its run.")
        client.set_flow_run_state(flow_run_id, state, force=True)
    return len(by_id)


def _is_running(flow_run: FlowRun) -> bool:
    return flow_run.state is not None and flow_run.state.type == StateType.RUNNING


def _is_in(flow_run: FlowRun, workspace: Workspace) -> bool:
    """True when a flow run works in this workspace; one that does not name its folder cannot be told, and is not."""
    folder = flow_run.parameters.get("workspace")
    return isinstance(folder, str) and Path(folder).is_absolute() and Path(folder).resolve() == workspace.root
