"""Proxies of the environment: never between processes of this machine, still used for others, named when malformed."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Iterator

import httpx
import pytest

from flows.doctor.checks import answers
from flows.orchestration.prefect_server import api_address
from flows.orchestration.proxies import spare_loopback
from schemas.base import check_url
from schemas.errors import UserError
from sdsearch.connections import check_proxies, client_options, is_loopback
from sdsearch.retrieval.http import HttpLimits, HttpRetriever
from tests.support.fakes import FixedRetriever
from tests.support.proxying import RecordingProxy, recording_proxy
from tests.support.serving import serving

QUICK = HttpLimits(timeout_s=5.0, max_attempts=1, backoff_s=0.001)
ELSEWHERE = "http://retriever.example:8000"
HITS = {"result": [[{"document": {"id": "7", "contents": '"Andorra"\nA capital.'}, "score": 0.5}]]}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without proxies."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture(params=["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def proxy(request: pytest.FixtureRequest, bare: pytest.MonkeyPatch) -> Iterator[RecordingProxy]:
    with recording_proxy(200, json.dumps(HITS).encode()) as running:
        bare.setenv(request.param, running.url)
        yield running


def test_a_retriever_of_this_machine_is_reached_past_a_proxy_and_another_through_it(proxy: RecordingProxy) -> None:
    with serving(FixedRetriever()) as url:
        near = HttpRetriever([url, url.replace("127.0.0.1", "localhost")], QUICK)
        assert near.fingerprint() == "hash-of-the-index"
        assert near.search(["a"], 1)[0][0].passage.title == "Andorra"
        assert answers("retriever", url, "start it").ok
        assert proxy.asked == []
        both = HttpRetriever([url, ELSEWHERE], QUICK)
        assert both.search(["a"], 1)[0][0].passage.id == "0"
        assert proxy.asked == []
    ((hit,),) = HttpRetriever([ELSEWHERE], QUICK).search(["a"], 1)
    assert hit.passage.id == "7"
    assert answers("retriever", ELSEWHERE, "start it").ok
    assert proxy.asked == [f"POST {ELSEWHERE}/retrieve", f"GET {ELSEWHERE}/"]


def test_a_proxy_that_reaches_nobody_is_no_answer(bare: pytest.MonkeyPatch) -> None:
    with recording_proxy() as proxy:
        bare.setenv("HTTP_PROXY", proxy.url)
        check = answers("retriever", ELSEWHERE, "start it")
    assert (check.ok, check.found, check.remedy) == (False, "no answer (status 502)", "start it")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HTTP_PROXY", "garbage://x:1", "Unknown scheme"),
        ("http_proxy", "http://x:abc", "Invalid port: 'abc'"),
        ("ALL_PROXY", "socks5://127.0.0.1:9", "'socksio' package is not installed"),
        ("https_proxy", "http://[::1", "."),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_where_it_is_needed(
    name: str, value: str, says: str, bare: pytest.MonkeyPatch
) -> None:
    bare.setitem(sys.modules, "socksio", None)
    bare.setenv(name, value)
    for ask in (check_proxies, lambda: HttpRetriever([ELSEWHERE], QUICK)):
        with pytest.raises(UserError, match=rf"^{name} of the environment cannot be used: .*{says}.*; correct it, or"):
            ask()
    assert answers("retriever", ELSEWHERE, "start it").remedy.startswith(f"{name} of the environment cannot")
    assert client_options(["http://127.0.0.1:8000"], "x") == {"trust_env": False}
    with serving(FixedRetriever()) as url:
        assert HttpRetriever([url], QUICK).fingerprint() == "hash-of-the-index"


@pytest.mark.parametrize(
    ("former", "listed"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "intern.example, localhost"}, "intern.example,localhost,127.0.0.1,::1"),
        ({"no_proxy": "a.example", "NO_PROXY": "b.example"}, "a.example,127.0.0.1,localhost,::1"),
    ],
    ids=str,
)
def test_this_machine_is_spared_in_the_environment(
    former: dict[str, str], listed: str, bare: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        bare.setenv(name, "")  # Is put back at the end of the test.
        bare.delenv(name)
    for name, value in former.items():
        bare.setenv(name, value)
    spare_loopback()
    spare_loopback()
    assert (os.environ["no_proxy"], os.environ["NO_PROXY"]) == (listed, listed)
    with recording_proxy() as proxy, serving(FixedRetriever()) as url:
        bare.setenv("HTTP_PROXY", proxy.url)
        assert httpx.get(f"{url}/health").status_code == 200  # As Prefect's client reads the environment.
        assert urllib.request.proxy_bypass("localhost:8000"), "as its websockets do"
        assert httpx.get(ELSEWHERE).status_code == 502
    assert proxy.asked == [f"GET {ELSEWHERE}/"]


def test_addresses_of_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "::1", "localhost", "LOCALHOST", "a.localhost")))
    assert not any(map(is_loopback, ("10.0.0.1", "localhost.example", "", "0.0.0.0", "example.org")))


@pytest.mark.parametrize("url", ["http://h", "https://h:1/x/", "http://[::1]:65535", "http://u:p@h:80", "HTTP://h"])
def test_urls_of_servers(url: str) -> None:
    assert check_url(url) == url


NO_URLS = [
    *("http://h:abc", "http://h:99999", "http://h:0", "http://h:-1", "http://::1:80", "http://[::1", "http://:80"),
    *("ftp://h", "h:80", "//h", "http://", "http:///api", "http://h?x=1", "http://h#", "http://h:80#x"),
]


@pytest.mark.parametrize("url", [*NO_URLS, "", " http://h", "http://h /x", "http://h\n", "http://h\x00b"])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_url(url)


def test_addresses_of_prefects_api() -> None:
    for url in (
        "http://127.0.0.1:4200/api",
        "http://h/prefect/api/",
        "https://api.prefect.cloud/api/accounts/a/workspaces/b",
    ):
        assert api_address(url) == url.rstrip("/")
    with pytest.raises(UserError, match=r"'http://h:4200/' is a server, not its API; write http://h:4200/api$"):
        api_address("http://h:4200/")
    for url in ("http://h:abc/api", "http://h:99999/api", "ftp://h/api", "h/api"):
        with pytest.raises(
            UserError, match=r"^PREFECT_API_URL \(or the profile's setting\): .*; write one such as http"
        ):
            api_address(url)
