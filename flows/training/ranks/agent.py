"""A machine's part in starting ranks: PyTorch's elastic agent, in a thread, and what is told of the ranks' end."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

import psutil
from torch.distributed import TCPStore  # type: ignore[attr-defined] # torch.distributed lists no names
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from flows.training.ranks.processes import MODULE, StopWatch, kill_ranks
from schemas.settings.distributed import DistributedSettings

_POLL_S: Final = 0.05
_SHUTDOWN_S: Final = 3
_KILL_S: Final = 5.0
_TAIL_LINES: Final = 3
# What the agent logs of a rank's end is told in one line here.
for _name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class AgentPlan(NamedTuple):
    """What a machine needs to know to start its ranks."""

    distributed: DistributedSettings
    endpoint: str  # HOST:PORT of the store of the run's process: commands and rendezvous.
    address: str  # Of this machine, as the others reach it.
    workspace: Path
    run: str
    source: str
    cards: tuple[str, ...] = ()  # That its ranks see, by local rank; empty: all that this process sees.


class RankEnd(NamedTuple):
    """How a rank ended."""

    number: int
    words: str
    is_killed: bool  # By a signal: no other rank's end made it end.


class Agent:
    """Starts this machine's ranks, once as many machines as there are to be have joined, and notices their end."""

    def __init__(self, plan: AgentPlan) -> None:
        self.endpoint = plan.endpoint
        self.ended: BaseException | None = None
        self._plan = plan
        self._watch = StopWatch(plan.endpoint)
        self._logs = tempfile.TemporaryDirectory(prefix="sdsearch-ranks-")
        self._thread = threading.Thread(target=self._launch, name="ranks", daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        """Tell whether ranks of this machine, or of others that this one waits for, are at work."""
        return self._thread.is_alive()

    def join(self, seconds: float) -> None:
        """Wait for the end of the ranks, but not longer."""
        self._thread.join(seconds)

    def kill(self) -> None:
        """End the ranks at once, whatever they are at; a thread that waits for other machines is left."""
        until = time.monotonic() + _KILL_S
        while self._thread.is_alive() and time.monotonic() < until:  # It may just be starting them.
            if kill_ranks(self.endpoint):
                until = time.monotonic() + _KILL_S
            self._thread.join(_POLL_S)
        self._logs.cleanup()

    def stopped(self) -> str | None:
        """Return what is told when a rank has been stopped for half of the time-out, before the others give it up."""
        stopped = self._watch.longest()
        distributed = self._plan.distributed
        if stopped is None or stopped.seconds <= distributed.timeout_s / 2:
            return None
        return (
            f"rank {stopped.number} of {distributed.ranks} (process {stopped.pid}) has been stopped (SIGSTOP) for "
            f"{stopped.seconds:.0f} s, longer than half of distributed.timeout_s"
        )

    def first_end(self, said: dict[int, str]) -> RankEnd | None:
        """Return how the first of this machine's ranks that failed did; None where it was not a rank that failed.

        said: what ranks told themselves of their end.
        """
        if not isinstance(self.ended, ChildFailedError):
            return None
        number, failed = first_failure(self.ended)
        how = f"signal {-failed.exitcode}" if failed.exitcode < 0 else f"exit code {failed.exitcode}"
        text = said.get(number) or self._last_lines(failed.local_rank)
        words = f"rank {number} of {self._plan.distributed.ranks} (process {failed.pid}) ended with {how}"
        return RankEnd(number, f"{words}{': ' + text if text else ''}", failed.exitcode < 0)

    def _launch(self) -> None:
        plan = self._plan
        machines = plan.distributed.nodes
        if machines > 1:
            name_interface(plan.address)
        config = LaunchConfig(
            min_nodes=machines,
            max_nodes=machines,
            nproc_per_node=plan.distributed.ranks_per_node,
            run_id=plan.run,
            rdzv_backend="c10d",
            rdzv_endpoint=plan.endpoint,
            # The run's process has the store already.
            rdzv_configs={"is_host": False, "join_timeout": max(1, round(plan.distributed.timeout_s))},
            local_addr=plan.address,
            max_restarts=0,
            monitor_interval=0.2,
            logs_specs=DefaultLogsSpecs(log_dir=self._logs.name, redirects=Std.ALL),
            shutdown_timeout=_SHUTDOWN_S,
        )
        own = (str(os.getpid()), plan.endpoint, str(plan.workspace), plan.run, plan.source, ",".join(plan.cards))
        try:
            elastic_launch(config, sys.executable)("-m", MODULE, *own)
        except BaseException as error:  # Told by the thread that waits for an answer.
            self.ended = error

    def _last_lines(self, local_rank: int) -> str:
        for path in Path(self._logs.name).rglob(f"{local_rank}/stderr.log"):
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return " ".join(line.strip() for line in lines[-_TAIL_LINES:])
        return ""


def first_failure(ended: ChildFailedError) -> tuple[int, ProcessFailure]:
    """Return the rank, and how it ended, whose end made others end: one that was killed before those that lost it.

    Their times are whole seconds, and several may have ended when the agent looks. Those that ended with SIGTERM come
    last: the agent stops the others so.
    """
    failures: dict[int, ProcessFailure] = ended.failures

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, bool, bool, int]:
        code = item[1].exitcode
        return code == -signal.SIGTERM, code != -signal.SIGKILL, code >= 0, item[1].timestamp

    return min(failures.items(), key=order)


def connect(endpoint: str, timeout: timedelta) -> TCPStore:
    """Return the store of the run's process; torch's errors where it cannot be reached."""
    host, _, port = endpoint.rpartition(":")
    return TCPStore(host, int(port), is_master=False, timeout=timeout)


def name_interface(address: str) -> None:
    """Tell gloo the network interface that has an address, unless it was told; it would look up the host's name."""
    with suppress(OSError):
        address = socket.gethostbyname(address)
    for name, addresses in psutil.net_if_addrs().items():
        if any(known.family == socket.AF_INET and known.address == address for known in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            return
