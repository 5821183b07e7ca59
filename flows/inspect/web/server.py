"""`sdsearch inspect`: the pages over HTTP, on this machine's loopback alone."""

from __future__ import annotations

import socket
import threading
import webbrowser
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import uvicorn
from rich.console import Console
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from flows.console.interrupts import terminable
from flows.console.serving import bound_socket, let_ignored_signals_be, url_of
from flows.console.terminal import print_line
from flows.inspect.web.compare import compare_page
from flows.inspect.web.groups import groups_page, question_page
from flows.inspect.web.rendering import templates
from flows.inspect.web.runs import run_page, runs_page
from flows.inspect.web.siblings import group_page
from flows.inspect.web.source import NotThereError, Source
from flows.inspect.web.tokens import tokens_page
from schemas.errors import UserError
from storage.errors import DatabaseBusyError, StorageError
from storage.workspace import Workspace, open_existing

HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8900
_SHUTDOWN_S: Final = 2
_STATIC: Final = Path(str(files(__package__) / "static"))
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Page = Callable[[Source, Request], dict[str, Any]]


_BELOW_A_RUN: Final[dict[str, tuple[str, Page]]] = {
    "": ("run.html", lambda s, r: run_page(s, r.path_params["run"])),
    "/iterations/{i:int}": ("groups.html", lambda s, r: groups_page(s, *_at(r), r.query_params)),
    "/iterations/{i:int}/groups/{id:path}": (
        "group.html",
        lambda s, r: group_page(s, *_at(r), r.path_params["id"]),
    ),
    "/iterations/{i:int}/rollouts/{id:path}": (
        "tokens.html",
        lambda s, r: tokens_page(s, *_at(r), r.path_params["id"]),
    ),
    "/questions/{id:path}": (
        "question.html",
        lambda s, r: question_page(s, r.path_params["run"], r.path_params["id"]),
    ),
}
"""What is shown below a run's address: the template and what fills it."""


def build_app(workspace: Workspace) -> Starlette:
    """Return the ASGI application over a workspace; it answers requests to loopback names alone."""
    source, made = Source(workspace), templates()

    def page(template: str, content: Page) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return await run_in_threadpool(_answer, request, template, content)

        return answer

    def _answer(request: Request, template: str, content: Page) -> Response:
        shown = {
            "request_path": request.url.path,
            "workspace": str(workspace.root),
            "is_live": False,
            "tries_again": False,
        }
        try:
            shown.update(content(source, request))
            return HTMLResponse(made.get_template(template).render(shown), headers=_HEADERS)
        except (UserError, StorageError) as error:
            status = 404 if isinstance(error, NotThereError) else 503
            shown.update(problem=str(error), tries_again=isinstance(error, DatabaseBusyError))
            return HTMLResponse(made.get_template("problem.html").render(shown), status, headers=_HEADERS)

    async def version(request: Request) -> Response:
        found = await run_in_threadpool(_version, source, request.query_params.get("run"))
        return JSONResponse(found, headers=_HEADERS)

    routes = [
        Route("/", page("runs.html", lambda s, r: {**runs_page(s), "is_live": True})),
        Route("/version", version),
        Route("/compare", page("compare.html", lambda s, r: compare_page(s, r.query_params.multi_items()))),
        *(Route(f"/runs/{{run}}{path}", page(template, content)) for path, (template, content) in _BELOW_A_RUN.items()),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return Starlette(routes=routes, middleware=[hosts])


def _at(request: Request) -> tuple[str, int]:
    return request.path_params["run"], request.path_params["i"]


def _version(source: Source, run: str | None) -> dict[str, str]:
    """Return what changes when a page of a run, or of all, would show something new; read from the files alone."""
    records = [record for record in source.runs() if run in (None, record.run)]
    stages = [
        file.stat().st_mtime_ns
        for record in records
        for file in source.workspace.run_folder(record.run).glob(
            f"iteration={record.iterations_done + 1:05d}/*/stage.json"
        )
    ]
    return {"version": f"{max((r.updated_at for r in records), default='')} {max(stages, default=0)} {len(stages)}"}


def inspect(run: str | None, folder: Path, port: int | None, console: Console, *, opens_browser: bool) -> None:
    """Serve the pages of a workspace until Ctrl-C, SIGTERM or SIGHUP; without a port 8900, or a free one.

    Raises UserError for a port that cannot be used and a run that is not there, WorkspaceError for no workspace.
    """
    workspace = open_existing(folder, needs_database=False)
    if run is not None:
        Source(workspace).run(run)
    with suppress(KeyboardInterrupt), terminable(), _socket(port) as bound:
        server = uvicorn.Server(
            uvicorn.Config(
                build_app(workspace),
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=_SHUTDOWN_S,
            )
        )
        let_ignored_signals_be(server)
        bound.listen()
        url = url_of(bound) + ("/" if run is None else f"/runs/{quote(run)}")
        print_line(console, f"{url} shows {workspace.root}; Ctrl-C stops it")
        if opens_browser:
            threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
        server.run(sockets=[bound])
    print_line(console, "stopped")


def _socket(port: int | None) -> socket.socket:
    if port is not None:
        return bound_socket(HOST, port)
    try:
        return bound_socket(HOST, DEFAULT_PORT)
    except UserError:  # Another inspector may have it.
        return bound_socket(HOST, 0)
