"""No proxy of the environment stands between this machine's own processes."""

from __future__ import annotations

import os
from typing import Final

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
# Clients read one or the other; a name in small letters goes before one in capitals.
_NAMES: Final = ("no_proxy", "NO_PROXY")


def spare_loopback() -> None:
    """Have the clients of this process, and of those that it starts, reach servers of this machine past any proxy."""
    listed = next((os.environ[name] for name in _NAMES if name in os.environ), "")
    hosts = [host.strip() for host in listed.split(",") if host.strip()]
    value = ",".join([*hosts, *(host for host in _LOOPBACK if host not in hosts)])
    for name in _NAMES:
        os.environ[name] = value
