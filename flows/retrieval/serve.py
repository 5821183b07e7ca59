"""`sdsearch retriever serve`: a retriever of the settings over HTTP, until Ctrl-C."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rich.console import Console

from flows.console.errors import UserError
from flows.console.interrupts import terminable
from flows.console.serving import bound_socket, let_ignored_signals_be, url_of
from flows.console.terminal import print_line
from flows.settings.load import load_settings
from schemas.commands import command, quoted, set_option
from schemas.settings.retrieval import HttpRetrievalSettings, PluginRetrievalSettings
from storage.workspace import Workspace

if TYPE_CHECKING:
    pass

# Clients keep their connections through the update of an iteration, so that none has to be made anew.
_KEEP_ALIVE_S = 600
# A search that hangs does not keep Ctrl-C from ending the server.
_SHUTDOWN_S = 10


def serve_retriever(
    config: str,
    overrides: Sequence[str],
    folder: Path,
    host: str,
    port: int,
    console: Console,
    limits: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Serve what [retrieval] of the settings names until Ctrl-C, SIGTERM or SIGHUP; port 0 takes a free one.

    `limits` are those of `ServerLimits` that differ from its own.

    Raises UserError for kind 'http' and for an address that cannot be used, before an index is loaded.
    """
    settings = load_settings(config, overrides).retrieval
    if isinstance(settings, HttpRetrievalSettings):
        raise UserError("retrieval.kind 'http' is a server's client; serve an index of this machine, such as 'dense'")
    if isinstance(settings, PluginRetrievalSettings):
        raise UserError(f"retrieval.kind '{settings.kind}' is a plugin; serve an index of kind dense, bm25 or hybrid")
    workspace = Workspace.open(folder)
    # Ctrl-C is how it is meant to end: the server first answers what is under way.
    with suppress(KeyboardInterrupt), terminable(), bound_socket(host, port) as bound:
        with console.status("loading the libraries and the index"):
            import uvicorn

            from flows.retrieval.open import open_local
            from sdsearch.retrieval.server import ServerLimits, make_app

            retriever, index = open_local(settings, workspace)
        num_passages = len(retriever.passages)
        chosen = replace(ServerLimits(), **limits)
        most = max(chosen.max_top_k, settings.num_passages)
        chosen = replace(chosen, default_top_k=settings.num_passages, max_top_k=most)
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(retriever, index, num_passages, chosen),
                log_level="warning",
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_SHUTDOWN_S,
            )
        )
        let_ignored_signals_be(server)
        bound.listen()
        served = f"{settings.kind} retrieval, {num_passages} passages of '{settings.corpus}', index {index[:16]}"
        _announce(url_of(bound), served, settings.num_passages, console)
        server.run(sockets=[bound])
    print_line(console, "stopped")


def _announce(url: str, served: str, num_passages: int, console: Console) -> None:
    body = json.dumps({"queries": ["capital of Peru"], "topk": num_passages, "return_scores": True})
    for line in (
        f"{url} serves {served}; in another terminal:",
        f"  curl {quoted(f'{url}/retrieve')} -H 'content-type: application/json' -d {quoted(body)}",
        f"  {command('train', 'tiny')} {set_option('retrieval.kind', 'http')} {set_option('retrieval.urls', [url])}",
        "/health and /metrics say how it is; Ctrl-C stops it",
    ):
        print_line(console, line)
    host = urlsplit(url).hostname
    if host is not None and not ipaddress.ip_address(host).is_loopback:
        print_line(console, f"warning: {host} is more than this machine: whoever reaches it may search, unasked")
