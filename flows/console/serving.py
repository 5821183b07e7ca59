"""Servers of this program: an address that is taken before anything is loaded, and how Ctrl-C ends them."""

from __future__ import annotations

import signal
import socket
from types import FrameType
from typing import TYPE_CHECKING

from flows.console.errors import UserError
from flows.console.interrupts import is_ignored
from schemas.errors import reason_of

if TYPE_CHECKING:
    import uvicorn


def let_ignored_signals_be(server: uvicorn.Server) -> None:
    """Have the server's own handler, which replaces every other, leave alone what was ignored before it."""
    ignored = {number for number in (signal.SIGINT, signal.SIGTERM) if is_ignored(number)}
    leave = server.handle_exit

    def handle_exit(number: int, frame: FrameType | None) -> None:
        if number not in ignored:
            leave(number, frame)

    setattr(server, "handle_exit", handle_exit)  # noqa: B010 (a method is replaced, for this one server)


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that has the address but does not listen yet; UserError when it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # UnicodeError: what can be no name of a host.
        raise UserError(f"--host {host}: no address of this machine ({reason_of(error)}); try 127.0.0.1") from error
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UserError(
            f"port {port} of {host} cannot be used ({error.strerror}); stop the program that has it, or choose another "
            "address with --host and --port"
        ) from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the address of a bound socket as an http URL."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
