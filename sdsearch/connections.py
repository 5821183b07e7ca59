"""How our HTTP clients reach a server: past any proxy on this machine, as the environment says elsewhere."""

from __future__ import annotations

import ipaddress
import os
import time
import urllib.request
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from schemas.base import check_url
from schemas.errors import library_errors

_SCHEMES: Final = ("http", "https", "all")  # What httpx looks for, each as NAME_PROXY and name_proxy.


def is_loopback(host: str) -> bool:
    """True for names and addresses of this machine that no other machine can have."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


def client_options(urls: Sequence[str], setting: str) -> dict[str, Any]:
    """Return the options of an httpx client that talks to these URLs, which `setting` names.

    A proxy cannot reach a server that listens on this machine alone. Raises UserError for what is no URL, and, naming
    the variable, for a proxy of the environment that cannot be used where one of the URLs needs it.
    """
    for url in urls:
        with library_errors(f"{setting}: {url!r} is no URL", "write http://host:port"):
            httpx.URL(check_url(url))  # Which reads international names more strictly than others.
    hosts = {urlsplit(url).hostname or "" for url in urls}
    near = {host for host in hosts if is_loopback(host)}
    if hosts == near:
        return {"trust_env": False}
    check_proxies()
    return {"mounts": {f"all://[{host}]" if ":" in host else f"all://{host}": None for host in near}}


def bounded_answer(
    client: httpx.Client, method: str, url: str, timeout_s: float, max_bytes: int, **options: Any
) -> tuple[int, httpx.Headers, bytes]:
    """Return status, headers and body; httpx's own limits are of each read, these are of the whole answer.

    Raises httpx.HTTPError for a request that failed, ValueError for an answer that is too long or too slow.
    """
    deadline = time.monotonic() + timeout_s
    content = bytearray()
    with client.stream(method, url, **options) as answer:
        for part in answer.iter_bytes():
            content += part
            if len(content) > max_bytes:
                raise ValueError(f"its answer is larger than {max_bytes} bytes")
            if time.monotonic() > deadline:
                raise ValueError(f"its answer did not end within {timeout_s:g} s")
    return answer.status_code, answer.headers, bytes(content)


def describe_failure(error: Exception) -> str:
    """Return why a request failed, in words."""
    if isinstance(error, httpx.TimeoutException):
        return f"no answer in time ({type(error).__name__})"
    return str(error) or type(error).__name__


def check_proxies() -> None:
    """Raise UserError, naming the variable, for a proxy of the environment that httpx cannot use."""
    proxies = urllib.request.getproxies()
    for scheme in _SCHEMES:
        address = proxies.get(scheme, "")
        if not address:
            continue
        names = [name for name in os.environ if name.lower() == f"{scheme}_proxy"] or [f"{scheme}_proxy"]
        remedy = "correct it, or unset it (servers of this machine are reached without it)"
        with library_errors(f"{' and '.join(sorted(names))} of the environment cannot be used", remedy):
            proxy = httpx.Proxy(address if "://" in address else f"http://{address}")
            httpx.HTTPTransport(verify=False, proxy=proxy).close()
