"""The Prefect server of a run: the one that is named, or one of our own that leaves no process behind."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from flows.console.errors import UserError
from flows.console.interrupts import terminable
from flows.orchestration.proxies import spare_loopback
from schemas.base import check_url
from schemas.errors import library_errors
from sdsearch.connections import check_proxies
from storage.workspace import Workspace

HOST = "127.0.0.1"
DEFAULT_PORT = 4200
_LOG = "prefect-server"
_START_DEADLINE_S = 300.0
_STOP_DEADLINE_S = 10.0
_ANSWER_DEADLINE_S = 10.0
_FLUSH_DEADLINE_S = 5.0
# Nothing is reported to anyone, and errors reach the terminal through the command line alone: Prefect keeps its
# log lines for its own user interface. A server that is gone is asked again for 14 s (a restart takes as long), not for
# a minute at each of its calls: the run continues without it. A value that the person has set stays.
_ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_CLIENT_MAX_RETRIES": "3",
}
_QUIET = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL", "PREFECT_SERVER_LOGGING_LEVEL": "WARNING"}


@dataclass(frozen=True)
class PrefectServer:
    """A server that answers; `started` says that it is ours and stops with the context."""

    url: str
    started: bool


@contextmanager
def prefect_api(workspace: Workspace, meanwhile: Callable[[], None] = lambda: None) -> Iterator[PrefectServer]:
    """Give a Prefect server that answers: the one of PREFECT_API_URL or the active profile, else a new local one.

    `meanwhile` is called once, while a new one starts. The new one is stopped at the end, with all its processes,
    also after an error, Ctrl-C or SIGTERM. Raises UserError when the named server does not answer or the new one
    does not start.
    """
    set_environment()
    url = check_named_server()
    if url is not None:
        meanwhile()
        yield PrefectServer(url, started=False)
        return
    with own_server(workspace, _free_port(), meanwhile) as server:
        yield server


@contextmanager
def own_server(
    workspace: Workspace, port: int, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[PrefectServer]:
    """Start a server on `port` for the length of the context and make it this process's Prefect API.

    `meanwhile` is called while it starts; an error of it stops the server.
    """
    with terminable():
        process = _start(workspace, port)
        try:
            meanwhile()
            _await_health(process, workspace, port)
            url = local_url(port)
            use_api(url)
            with _flushed():
                yield PrefectServer(url, started=True)
        finally:
            _stop(process)


def set_environment() -> None:
    """Set what Prefect reads from the environment; call it before prefect is imported.

    Raises UserError for a proxy of the environment that Prefect's client cannot be made with.
    """
    spare_loopback()
    check_proxies()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "PREFECT_LOGGING_LEVEL" not in os.environ:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)


def named_url() -> str | None:
    """Return the API that PREFECT_API_URL or the active Prefect profile names, None when there is none or a blank.

    Raises UserError for what can be no address of an API, and for other settings of Prefect that it cannot read.
    """
    with library_errors("Prefect's settings", "correct PREFECT_… of the environment, or the profile"):
        from prefect.settings import get_current_settings

        url = (get_current_settings().api.url or "").strip()
    if not url:
        return None
    return api_address(url)


def api_address(url: str) -> str:
    """Return the address of a Prefect API without a slash at its end; UserError for what can be none."""
    setting = "PREFECT_API_URL (or the profile's setting)"
    try:
        check_url(url)
    except ValueError as error:
        raise UserError(f"{setting}: {error}; write one such as {local_url(DEFAULT_PORT)}") from error
    if "api" not in urlsplit(url).path.split("/"):
        raise UserError(f"{setting}: {url!r} is a server, not its API; write {url.rstrip('/')}/api")
    return url.rstrip("/")


def check_named_server() -> str | None:
    """Return the address of the server that is named, None where none is; UserError when it does not answer."""
    url = named_url()
    if url is not None:
        use_api(url)  # As it was read: without blanks, and without a slash at its end.
        _check_answers(url)
    return url


def use_api(url: str) -> None:
    """Make `url` the Prefect API of this process and of those that it starts."""
    os.environ["PREFECT_API_URL"] = url
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()


def local_url(port: int) -> str:
    """Return the API address of a server on this machine."""
    return f"http://{HOST}:{port}/api"


def answers_on(port: int) -> bool:
    """True when a Prefect server answers on the port; UserError when another program does."""
    try:
        with socket.create_connection((HOST, port), timeout=_ANSWER_DEADLINE_S):
            pass
    except OSError:
        return False
    if not _is_healthy(port):
        raise UserError(
            f"port {port} on {HOST} is used by a program that is no Prefect server; stop it, or choose another port "
            "with --port"
        )
    return True


def local_port(url: str) -> int | None:
    """Return the port of an API address on this machine, None when it lies elsewhere."""
    parts = urlsplit(url)
    return (parts.port or 80) if parts.hostname in (HOST, "localhost", "::1") else None


def _check_answers(url: str) -> None:
    remedy = (
        "start it with 'sdsearch up', unset PREFECT_API_URL (or the profile's setting) to have one started, or train "
        "with --no-prefect"
    )
    with library_errors(f"the Prefect server {url} does not answer", remedy):
        from prefect import get_client

        with get_client(httpx_settings={"timeout": _ANSWER_DEADLINE_S}, sync_client=True) as client:
            problem = client.api_healthcheck()
            if problem is not None:
                raise problem
            client.raise_for_api_version_mismatch()  # Another program may answer as well.


def _start(workspace: Workspace, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    environment = {**os.environ, "PREFECT_API_URL": local_url(port)}
    with workspace.open_log(_LOG) as log:
        # Its own session: Ctrl-C reaches this process alone, which then stops the whole group.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def _await_health(process: subprocess.Popen[bytes], workspace: Workspace, port: int) -> None:
    deadline = time.monotonic() + _START_DEADLINE_S
    log = workspace.log(_LOG)
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UserError(
                f"the Prefect server could not be started on port {port} (exit code {process.returncode}); read {log}, "
                "or train with --no-prefect"
            )
        if _is_healthy(port):
            return
        time.sleep(0.1)
    raise UserError(
        f"the Prefect server did not answer on port {port} within {_START_DEADLINE_S:.0f} s; read {log}, or train "
        "with --no-prefect"
    )


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=_ANSWER_DEADLINE_S)
    try:
        connection.request("GET", "/api/health")
        response = connection.getresponse()
        return response.status == 200 and response.read(64).strip() == b"true"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def _flushed() -> Iterator[None]:
    """Have Prefect send the logs and events that it still holds while the server is there to take them."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    try:
        yield
    finally:
        for worker in (APILogWorker, EventsWorker):
            worker.drain_all(timeout=_FLUSH_DEADLINE_S)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the server's whole process group, by force when it does not go by itself."""
    try:
        _signal_group(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_DEADLINE_S
        while _group_lives(process) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        if _group_lives(process):
            _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # Reaps the leader, which would otherwise keep its group.
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
