"""The doctor on several machines at one time: do they reach each other, is the workspace one, do their clocks agree?

All machines start the same command, each with its number; machine 0 is the one at the endpoint. They meet in PyTorch's
TCPStore, the one that ranks meet in too. What one says, and what it hears, is a key of the store.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from flows.doctor.checks import Check
from schemas.errors import UserError
from schemas.settings.root import Settings
from storage.runs.lock import HEARTBEAT_S
from storage.runs.tokens import is_token_in, token_in

_ANSWER_S: Final = 10.0
_LOOPBACK: Final = "127.0.0.1"
# A network file system may show a new file late: NFS keeps what it knows of a folder for up to a minute.
_SEEN_S: Final = 70.0
_LARGEST_DIFFERENCE_S: Final = HEARTBEAT_S


def rank_checks(settings: Settings) -> Iterator[Check]:
    """Yield whether ranks of this machine can reach each other, where there are ranks."""
    if settings.distributed.ranks == 1:
        return
    remedy = "let programs of this machine listen and connect on 127.0.0.1 (firewall, container, sandbox)"
    needed = f"a port on {_LOOPBACK} for {settings.distributed.ranks} ranks"
    try:
        with closing(socket.create_server((_LOOPBACK, 0))) as server:
            socket.create_connection(server.getsockname(), timeout=_ANSWER_S).close()
    except OSError as error:
        yield Check("ranks meet", f"no way ({error.strerror or error})", needed, False, remedy)
    else:
        yield Check("ranks meet", "reached", needed, True)


class Meeting(NamedTuple):
    """Where and with whom: machine `place` of `number`; all wait for the last one up to `timeout_s`."""

    host: str
    port: int
    number: int
    place: int
    timeout_s: float


def read_meeting(endpoint: str, machines: int, machine: int, timeout_s: float) -> Meeting:
    """Return the meeting that the command line names; UserError for what is none."""
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--meet {endpoint!r}: expected HOST:PORT of machine 0, such as node0:29500")
    if machines < 2:
        raise UserError(f"--machines {machines}: expected the number of all machines, at least 2")
    if not 0 <= machine < machines:
        raise UserError(f"--machine {machine}: expected a number from 0 to {machines - 1}, another one on each machine")
    return Meeting(host.strip("[]"), int(port), machines, machine, timeout_s)


def meet(meeting: Meeting, workspace: Path) -> list[Check]:
    """Return the checks of what the machines have in common, as this one finds them; all wait for each other."""
    try:
        store = _open_store(meeting)
    except RuntimeError as error:  # torch's DistError.
        first = str(error).strip().splitlines()[0][:120]
        remedy = (
            "start the same command on every machine, each with its own --machine, and let machine 0 be reached at "
            f"{meeting.host}:{meeting.port} (name, firewall)"
        )
        return [Check("machines meet", f"not all came: {first}", f"{meeting.number} machines", False, remedy)]
    machine = _Machine(meeting, store)
    checks = [Check("machines meet", f"{meeting.number} are here", f"{meeting.number} machines", True)]
    with _listening() as port:
        checks.append(machine.check_reach(port))
    checks.append(machine.check_workspace(workspace))
    checks.append(machine.check_clock())
    machine.wait("end")
    return checks


class _Machine:
    """This machine at the meeting."""

    def __init__(self, meeting: Meeting, store: Any) -> None:
        self.now = time.time
        self._meeting = meeting
        self._store = store
        self._others = [place for place in range(meeting.number) if place != meeting.place]

    def say(self, key: str, value: object) -> None:
        self._store.set(f"{key}/{self._meeting.place}", json.dumps(value))

    def hear(self, key: str, place: int) -> Any:
        return json.loads(self._store.get(f"{key}/{place}"))

    def wait(self, key: str) -> None:
        """Wait until all machines are here; the store, which machine 0 holds, must outlive what others ask of it."""
        self.say(key, True)
        for place in self._others:
            self.hear(key, place)
        if self._meeting.place:
            self.say(f"{key}-left", True)
        else:
            for place in self._others:
                self.hear(f"{key}-left", place)

    def check_reach(self, port: int) -> Check:
        """Connect to a port of every other machine, as ranks do."""
        self.say("address", [_own_address(self._meeting), port])
        silent = []
        for place in self._others:
            address = tuple(self.hear("address", place))
            try:
                socket.create_connection(address, timeout=_ANSWER_S).close()
            except OSError as error:
                silent.append(f"machine {place} at {address[0]}: {error.strerror or error}")
        self.wait("reached")
        remedy = "open the machines' ports to each other: ranks listen on ports that the system gives them"
        return Check(
            "network", "; ".join(silent) or "all reached", f"{len(self._others)} other machines", not silent, remedy
        )

    def check_workspace(self, workspace: Path) -> Check:
        """Write a token into the workspace and read those of the others."""
        token = secrets.token_hex(8)
        with token_in(workspace, token):
            self.say("token", token)
            deadline = time.monotonic() + _SEEN_S
            missing = [p for p in self._others if not _is_seen(workspace, self.hear("token", p), deadline)]
            self.wait("seen")
        names = ", ".join(f"machine {place}" for place in missing)
        found = f"what {names} wrote is not here" if missing else "what each wrote is here"
        remedy = (
            f"put the workspace on a file system that all machines share, at the same path ({workspace}), and name it "
            "with --workspace or SDSEARCH_HOME"
        )
        return Check("shared workspace", found, "one folder", not missing, remedy)

    def check_clock(self) -> Check:
        """Compare this machine's clock with machine 0's."""
        needed = f"within {_LARGEST_DIFFERENCE_S:.0f} s"
        remedy = "have the machines' clocks set by NTP (chrony, systemd-timesyncd): a run's lock tells a death by them"
        if not self._meeting.place:
            for place in self._others:
                self.hear("asks", place)
                self._store.set(f"time/{place}", json.dumps(self.now()))
            return Check("clocks", "the others compare theirs with this one", needed, True)
        asked = self.now()
        self.say("asks", True)
        theirs = self.hear("time", self._meeting.place)
        # Machine 0 may have answered others first: what it took is in doubt on both sides.
        heard = self.now()
        difference = max(theirs - heard, asked - theirs, 0.0)
        return Check(
            "clocks", f"{difference:.1f} s from machine 0's", needed, difference <= _LARGEST_DIFFERENCE_S, remedy
        )


def _open_store(meeting: Meeting) -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined] # torch.distributed lists no names

    return TCPStore(
        meeting.host,
        meeting.port,
        world_size=meeting.number,
        is_master=not meeting.place,
        timeout=timedelta(seconds=meeting.timeout_s),
        wait_for_workers=True,
    )


@contextmanager
def _listening() -> Iterator[int]:
    """Give a port of this machine that takes connections."""
    with closing(socket.create_server(("", 0), backlog=64)) as server:
        yield int(server.getsockname()[1])


def _own_address(meeting: Meeting) -> str:
    """Return the address from which this machine speaks to machine 0, or at which machine 0 was named."""
    if not meeting.place:
        return meeting.host
    with closing(socket.create_connection((meeting.host, meeting.port), timeout=_ANSWER_S)) as way:
        return str(way.getsockname()[0])


def _is_seen(workspace: Path, token: str, deadline: float) -> bool:
    while not is_token_in(workspace, token):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
