"""A further machine of a run: it joins at the run's endpoint, starts its ranks when told to, and ends with the run."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined] # torch.distributed lists no names

from flows.run.cards import rank_cards
from flows.run.policy import check_device, check_ranks
from flows.training.ranks.agent import Agent, AgentPlan, connect
from flows.training.ranks.attendance import failures_of
from flows.training.ranks.machines import BEAT_S
from flows.training.ranks.messages import (
    BEAT,
    LEFT,
    MACHINES,
    PLACE,
    PROGRAM,
    SETTINGS,
    START,
    STOP,
    Machine,
    Place,
    Program,
)
from flows.training.ranks.program import check_program, this_program
from schemas.errors import UserError
from schemas.settings.root import STORED, Settings
from storage.runs.lock import lock_holder
from storage.workspace import Workspace

_POLL_S: Final = 0.1
_CONNECT_S: Final = 5.0
_STORE_TIMEOUT: Final = timedelta(seconds=60)
_GRACE_S: Final = 5.0
_INTERRUPTED: Final = "its process was interrupted"


class Joined(NamedTuple):
    """A machine's place in a run."""

    number: int
    place: Place
    settings: Settings
    machine: Machine


class _Pulse(threading.Thread):
    """Gives signs of life to the run's process, and notices the run's end and that process's."""

    def __init__(self, store: TCPStore, number: int) -> None:
        super().__init__(name="pulse", daemon=True)
        self._store = store
        self._number = number
        self.answered = time.monotonic()
        self.stopped: str | None = None  # Why the run ended; '' where its work was done.
        self.is_lost = False

    def run(self) -> None:
        """Beat until the run has ended."""
        try:
            while self.stopped is None:
                self._store.add(f"{BEAT}/{self._number}", 1)
                self.answered = time.monotonic()
                if self._store.check([STOP]):
                    self.stopped = self._store.get(STOP).decode()
                time.sleep(BEAT_S)
        except DistError:
            self.is_lost = True


def join(endpoint: str, workspace: Path, wait_s: float, tell: Callable[[str], None]) -> None:
    """Work for the run at an endpoint until it ends; wait_s: how long the run may take to be there.

    Raises UserError where the run cannot be joined, and where it does not end well, in one line.
    """
    store = _connect(endpoint, wait_s)
    settings = Settings.model_validate_json(store.get(SETTINGS), context=STORED)
    place = Place.model_validate_json(store.get(PLACE))
    _check(store, settings, place, workspace)
    joined = _enter(store, settings, place)
    tell(f"joined run {place.run} on {place.host} with {settings.distributed.ranks_per_node} ranks; waits for its work")
    pulse = _Pulse(connect(endpoint, _STORE_TIMEOUT), joined.number)
    pulse.start()
    why = f"machine {joined.machine.host} (process {joined.machine.pid}) left: {_INTERRUPTED}"
    try:
        why = _work(store, pulse, joined, endpoint, workspace)
    except DistError:  # Between two beats.
        why = _run_ended(pulse, endpoint)
    finally:
        _leave(store, joined.number, "" if pulse.stopped is not None else why)
    if why:
        raise UserError(f"run '{place.run}' ended here: {why}")
    tell(f"run {place.run} is done with this machine")


def _connect(endpoint: str, wait_s: float) -> TCPStore:
    """Return the run's store as soon as it is there."""
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"ENDPOINT is '{endpoint}', and is HOST:PORT, the run's distributed.endpoint")
    until = time.monotonic() + wait_s
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=_CONNECT_S):
                pass
            return connect(endpoint, _STORE_TIMEOUT)
        except (OSError, OverflowError, DistError) as error:
            if time.monotonic() > until:
                raise UserError(
                    f"no run is at {endpoint} after {wait_s:.0f} s ({str(error).splitlines()[0]}); start it there with "
                    "distributed.nodes and distributed.endpoint, or wait longer with --wait"
                ) from error
            time.sleep(_POLL_S)


def _check(store: TCPStore, settings: Settings, place: Place, workspace: Path) -> None:
    """Raise UserError unless this machine has the run's program, its workspace, and a card for each rank."""
    expected = Program.model_validate_json(store.get(PROGRAM))
    check_program(socket.gethostname(), this_program(settings), expected)
    holder = lock_holder(Workspace.open(workspace), place.run) if workspace.is_dir() else None
    if holder is None or (holder.host, holder.pid) != (place.host, place.pid):
        raise UserError(
            f"{workspace} is not the workspace of run '{place.run}' on {place.host}: no lock of its process "
            f"{place.pid} is there; share the workspace's folder with this machine, and name it with --workspace"
        )
    check_device(settings.model.device)
    check_ranks(settings.model.device, settings.distributed.ranks_per_node)
    rank_cards(settings)


def _enter(store: TCPStore, settings: Settings, place: Place) -> Joined:
    number = store.add(MACHINES, 1) - 1
    if number >= settings.distributed.nodes - 1:
        raise UserError(
            f"run '{place.run}' has its {settings.distributed.nodes} machines (distributed.nodes) and needs no more"
        )
    machine = Machine(host=socket.gethostname(), pid=os.getpid())
    store.set(f"{MACHINES}/{number}", machine.model_dump_json())
    return Joined(number, place, settings, machine)


def _work(store: TCPStore, pulse: _Pulse, joined: Joined, endpoint: str, workspace: Path) -> str:
    """Start the ranks when told to and wait for their end; return why the run ended, '' where its work is done."""
    while not (pulse.is_lost or pulse.stopped is not None or store.check([START])):
        time.sleep(_POLL_S)
    if pulse.stopped is not None or pulse.is_lost:
        return _run_ended(pulse, endpoint)
    place, distributed = joined.place, joined.settings.distributed
    cards, own = rank_cards(joined.settings), workspace.resolve()
    plan = AgentPlan(distributed, endpoint, _own_address(endpoint), own, place.run, place.source, cards)
    agent = Agent(plan)
    try:
        while agent.is_alive():
            if why := agent.stopped():
                return f"{why}, on {joined.machine.host}"
            if pulse.is_lost or pulse.stopped or time.monotonic() - pulse.answered > distributed.timeout_s:
                return _run_ended(pulse, endpoint)
            time.sleep(_POLL_S)
        return "" if agent.ended is None else _own_end(store, pulse, agent, joined, endpoint)
    finally:
        agent.kill()


def _own_end(store: TCPStore, pulse: _Pulse, agent: Agent, joined: Joined, endpoint: str) -> str:
    """Return what is told where this machine's ranks ended with an error, which may be the end of others."""
    if pulse.is_lost or pulse.stopped is not None:
        return _run_ended(pulse, endpoint)
    failures = failures_of(store, joined.settings.distributed.ranks)
    end = agent.first_end({number: failure.text for number, failure in failures.items()})
    words = end.words if end else f"its ranks could not be started or ended early: {agent.ended}"
    waited = any(failure.waited for failure in failures.values())  # Then the agent killed who was waited for.
    if end is None or (end.is_killed and not waited):
        return f"{words}, on {joined.machine.host}"
    # Another machine's end may have been the first: the run's process knows.
    until = time.monotonic() + _GRACE_S
    while pulse.stopped is None and not pulse.is_lost and time.monotonic() < until:
        time.sleep(_POLL_S)
    return pulse.stopped or f"{words}, on {joined.machine.host}"


def _run_ended(pulse: _Pulse, endpoint: str) -> str:
    if pulse.stopped is not None:
        return pulse.stopped
    return f"its process at {endpoint} is gone; resume the run there, then join it again"


def _leave(store: TCPStore, number: int, why: str) -> None:
    """Say that this machine is at its end, where there is anyone to hear it."""
    try:
        store.set(f"{LEFT}/{number}", why)
    except DistError:
        return


def _own_address(endpoint: str) -> str:
    """Return this machine's address on the way to the run's."""
    host, _, port = endpoint.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=_CONNECT_S) as connection:
        return str(connection.getsockname()[0])
