"""The tests run as if typed into a plain shell, whatever started them: a background job, a build server, a login."""

from __future__ import annotations

import os
import signal

# What changes how programs print, where they look for servers and files, or which settings they take.
_PREFIXES = ("PREFECT_", "SDSEARCH_", "GIT_")
_NAMES = {
    "NO_COLOR",
    "FORCE_COLOR",
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
    "LINES",
    "PYTHONIOENCODING",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
}


def be_a_plain_shell() -> None:
    """Undo what a parent process left: signals that it ignores, its umask, and variables that steer programs.

    A shell ignores SIGINT for its background jobs, and every process that is started from there inherits it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
    for name in list(os.environ):
        if name.upper() in _NAMES or name.startswith(_PREFIXES):
            del os.environ[name]
    # Tables are as wide whatever the tests run in: a terminal, a log, or a worker of pytest-xdist (80 columns).
    os.environ |= {"COLUMNS": "200", "TERM": "xterm-256color"}  # A dumb terminal gets no bars.
