"""The retrieval protocol over real HTTP: our server, our client, and servers that misbehave."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from schemas.errors import UserError
from schemas.records.passage import Passage, SearchHit
from sdsearch.retrieval.dense import build_dense_retriever
from sdsearch.retrieval.http import HttpLimits, HttpRetriever
from sdsearch.retrieval.lexical import LexicalEncoder, LexicalSettings
from sdsearch.retrieval.ports import Retriever, RetrieverDownError
from sdsearch.retrieval.server import ServerLimits
from tests.support.serving import serving

PASSAGES = [
    Passage(id="7", title="Andorra", text="The capital of Andorra is Andorra la Vella."),
    Passage(id="8", title="Mur", text="The Mur is a river of Europe."),
    Passage(id="9", title='A "quoted" title', text="Two lines\nof a text about trees."),
]
QUICK = HttpLimits(timeout_s=10.0, max_attempts=3, backoff_s=0.001, max_answer_bytes=100_000)
GOOD = {"result": [[{"document": {"id": "7", "contents": '"Andorra"\nA capital.'}, "score": 0.5}]]}


def lexical() -> Retriever:
    encoder = LexicalEncoder.fit([passage.contents for passage in PASSAGES], LexicalSettings(num_dimensions=None))
    return build_dense_retriever(PASSAGES, encoder)


@contextmanager
def misbehaving(answer: Callable[[int], tuple[int, bytes]]) -> Iterator[tuple[str, list[int]]]:
    """A server that answers what it is told to; also gives the list of its requests."""
    seen: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            seen.append(len(seen))
            status, body = answer(seen[-1])
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):  # The client may have gone.
                self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(
        lexical(), ServerLimits(max_request_bytes=20_000, max_queries=4, max_query_characters=1000, default_top_k=2)
    ) as url:
        yield url


def test_the_client_finds_what_the_retriever_finds(url: str) -> None:
    queries = ["capital of Andorra", "river of Europe", "", "zebra", "trees", "text"]
    limits = HttpLimits(queries_per_request=4)
    assert [[hit.passage for hit in hits] for hits in HttpRetriever([url], limits).search(queries, 2)] == [
        [hit.passage for hit in hits] for hits in lexical().search(queries, 2)
    ]


def test_the_protocol_is_search_r1s(url: str) -> None:
    with_scores = httpx.post(f"{url}/retrieve", json={"queries": ["Andorra"], "topk": 1, "return_scores": True}).json()
    ((hit,),) = with_scores["result"]
    assert hit["document"] == {"id": "7", "contents": '"Andorra"\nThe capital of Andorra is Andorra la Vella.'}
    assert hit["score"] > 0
    # Search-R1's own server takes 0 for none, passes over other fields, and answers no queries with no lists.
    for asked in ({}, {"topk": None}, {"topk": 0}, {"user": "x"}):
        plain = httpx.post(f"{url}/retrieve", json={"queries": ["the of"], **asked}).json()
        assert [document["id"] for document in plain["result"][0]] == ["8", "7"], asked
        assert plain["result"][0][1] == hit["document"]
    assert httpx.post(f"{url}/retrieve", json={"queries": []}).json() == {"result": []}


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"queries": "Andorra"}, 422, "queries"),
        ({"queries": [3]}, 422, "body.queries.0: Input should be a valid string"),
        ({"queries": ["a", None]}, 422, "body.queries.1: Input should be a valid string"),
        ({"query": ["a"]}, 422, "body.query: Input should be a valid string"),
        ({}, 422, "expected queries, a list of texts, or query, one text"),
        ({"queries": ["a"], "query": "a"}, 422, "expected queries, a list of texts, or query, one text"),
        ({"queries": ["a"], "topk": -1}, 422, "topk"),
        ({"queries": ["a"], "topk": "three"}, 422, "topk"),
        ({"queries": ["a"], "topk": 2.5}, 422, "topk"),
        ({"queries": ["a"], "topk": True}, 422, "topk"),
        ({"queries": ["a"], "return_scores": "maybe"}, 422, "return_scores"),
        ({"queries": ["a"], "return_scores": 2}, 422, "return_scores"),
        ({"queries": ["a"], "topk": 1000}, 422, "at most 100"),
        ({"queries": ["a"] * 5}, 422, "at most 4"),
        ({"queries": ["a" * 1001]}, 422, "at most 1000"),
        ({"queries": ["a" * 1_000_000]}, 413, "larger than 20000 bytes"),
        ([1, 2], 422, "dict"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_answered_is_refused_with_the_reason(
    url: str, body: object, status: int, says: str
) -> None:
    answer = httpx.post(f"{url}/retrieve", json=body)
    assert answer.status_code == status
    assert says in answer.text


def test_health_and_metrics(url: str) -> None:
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "index": "hash-of-the-index", "num_passages": 3}
    before = _metric(url, "sdsearch_queries_total")
    httpx.post(f"{url}/retrieve", json={"queries": ["a", "b"]})
    assert _metric(url, "sdsearch_queries_total") == before + 2
    assert HttpRetriever([url]).fingerprint() == "hash-of-the-index"


def test_requests_that_wait_are_searched_together() -> None:
    asked: list[tuple[int, int]] = []

    class Slow:
        def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
            asked.append((len(queries), top_k))
            time.sleep(0.2)
            return [(SearchHit(passage=PASSAGES[int(query) % 3], score=1.0),) * top_k for query in queries]

    with serving(Slow()) as url:
        answers: dict[int, list[tuple[SearchHit, ...]]] = {}

        def ask(number: int) -> None:
            answers[number] = HttpRetriever([url]).search([str(number)], 1 + number % 2)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(asked) < 8
    # An approximate index may find other passages when more are asked for: nobody's search is for more than asked.
    assert [sum(size for size, top_k in asked if top_k == wanted) for wanted in (1, 2)] == [4, 4]
    for number, (hits,) in answers.items():
        assert [hit.passage.id for hit in hits] == [PASSAGES[number % 3].id] * (1 + number % 2)


def test_a_search_that_fails_is_an_error_of_the_server_and_never_an_empty_result() -> None:
    class Broken:
        def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
            raise RetrieverDownError("the disk is gone")

    with serving(Broken()) as url:
        answer = httpx.post(f"{url}/retrieve", json={"queries": ["a"]})
        assert answer.status_code == 503
        with pytest.raises(RetrieverDownError, match=r"503.*the disk is gone.*no answer to 'a'$"):
            HttpRetriever([url], QUICK).search(["a"], 1)
        assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (500, b"oops", "500"),
        (200, b"not json", "not of the protocol"),
        (200, b'{"result": []}', "0 lists of passages for 1 queries"),
        (200, b'{"result": [[{"document": {"id": "1"}, "score": 1}]]}', "contents"),
        (200, b'{"result": [[{"document": {"id": "1", "contents": "x"}, "score": NaN}]]}', "score"),
        (200, b'{"result": [[{"document": {"id": "1", "contents": "x"}, "score": "0.5"}]]}', "score"),
        (200, b'{"result": [[{"document": {"id": "1", "contents": 3}, "score": 1}]]}', "contents"),
        (200, b'{"result": [[{"document": {"id": 1.5, "contents": "x"}, "score": 1}]]}', "id"),
        (
            200,
            b'{"result": [[{"document": {"contents": "x"}}, {"document": {"contents": "y"}, "score": 1}]]}',
            "a score for some",
        ),
        (200, b'{"result": [[{"id": "1", "text": "x"}]]}', "contents"),
        (200, b'{"result": [[{"id": "1", "contents": ["x"]}]]}', "contents"),
        (200, b'{"result": [["x", null]]}', "result.0.1"),
        (200, b'{"result": [[7]]}', "result.0.0"),
        (200, b'{"result": ["x"]}', "result.0"),
        (200, b'{"result": [null]}', "result.0"),
        (200, b'{"result": {"0": []}}', "result"),
        (200, b'{"results": [[]]}', "result"),
        (200, b"[" * 90_000, "not of the protocol"),
        (200, b" " * 200_000, "larger than 100000 bytes"),
        (302, b"", "status 302"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_garbage_is_asked_again_and_then_an_error_that_names_url_and_query(status: int, body: bytes, says: str) -> None:
    with misbehaving(lambda _: (status, body)) as (url, seen):
        with pytest.raises(RetrieverDownError) as error:
            HttpRetriever([url], QUICK).search(["who?"], 3)
        assert len(seen) == QUICK.max_attempts
    assert url in str(error.value)
    assert "'who?'" in str(error.value)
    assert says in str(error.value)


def test_a_server_that_recovers_is_used() -> None:
    answers = [(500, b""), (200, b"garbage"), (200, json.dumps(GOOD).encode())]
    with misbehaving(lambda count: answers[count]) as (url, seen):
        retriever = HttpRetriever([url], QUICK)
        ((hit,),) = retriever.search(["Andorra"], 3)
    assert (hit.passage.id, hit.passage.title, hit.passage.text) == ("7", "Andorra", "A capital.")
    assert retriever.num_retries == 2
    assert len(seen) == 3
    assert retriever.take_retried() == {"Andorra": 2}
    assert retriever.take_retried() == {}, "each is told once"


def test_only_the_queries_of_a_repeated_request_were_retried() -> None:
    both = json.dumps({"result": GOOD["result"] * 2}).encode()
    answers = [(200, both), (500, b""), (200, both)]
    with misbehaving(lambda count: answers[count]) as (url, _):
        retriever = HttpRetriever([url], HttpLimits(backoff_s=0.001, queries_per_request=2, max_query_characters=3))
        assert len(retriever.search(["Andorra", "Oslo", "Paris", "Rome"], 3)) == 4
    assert retriever.take_retried() == {"Paris": 1, "Rome": 1}


def test_a_refused_request_is_not_asked_again() -> None:
    with misbehaving(lambda _: (422, b"too long")) as (url, seen):
        with pytest.raises(RetrieverDownError, match="refused the request: status 422, 'too long'"):
            HttpRetriever([url], QUICK).search(["a"], 1)
        assert len(seen) == 1


def test_a_server_that_hangs_runs_into_the_time_limit() -> None:
    def hang(_: int) -> tuple[int, bytes]:
        time.sleep(1.0)
        return 200, b""

    limits = HttpLimits(timeout_s=0.1, max_attempts=2, backoff_s=0.001)
    with misbehaving(hang) as (url, _), pytest.raises(RetrieverDownError, match="no answer in time"):
        HttpRetriever([url], limits).search(["a"], 1)


def test_another_server_takes_over() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with misbehaving(lambda _: (200, json.dumps(GOOD).encode())) as (url, seen):
        retriever = HttpRetriever([dead, url], QUICK)
        for _ in range(3):
            assert len(retriever.search(["Andorra"], 1)) == 1
        assert len(seen) == 3
        # The dead one was tried once only: the client stays with a server that answers.
        assert retriever.num_retries == 1
    with pytest.raises(RetrieverDownError, match=dead):
        HttpRetriever([dead], QUICK).fingerprint()


def test_an_answer_that_trickles_runs_into_the_time_limit() -> None:
    class Trickling:
        """Sends a blank every 20 ms for ever: no single read takes long."""

        def __enter__(self) -> str:
            self._listening = socket.create_server(("127.0.0.1", 0))
            threading.Thread(target=self._serve, daemon=True).start()
            return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

        def _serve(self) -> None:
            connection, _ = self._listening.accept()
            with connection, suppress(OSError):
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while True:
                    connection.sendall(b" ")
                    time.sleep(0.02)

        def __exit__(self, *_: object) -> None:
            self._listening.close()

    limits = HttpLimits(timeout_s=0.2, max_attempts=1)
    with Trickling() as url, pytest.raises(RetrieverDownError, match=r"did not end within 0\.2 s"):
        HttpRetriever([url], limits).search(["a"], 1)


@pytest.mark.parametrize("url", ["http://\u2603.example:1", "http://a\x00b"])
def test_what_is_no_url_is_named(url: str) -> None:
    with pytest.raises(UserError, match=r"retrieval\.urls: 'http.* is no URL: .*write http://host:port"):
        HttpRetriever([url])


def test_a_long_query_is_cut_and_not_refused(url: str) -> None:
    limits = HttpLimits(max_query_characters=1000)
    ((hit,),) = HttpRetriever([url], limits).search(["Andorra " * 125_000], 1)
    assert hit.passage.id == "7"
    with pytest.raises(RetrieverDownError, match=r"refused the request: status 413"):
        HttpRetriever([url], HttpLimits(max_query_characters=1_000_000)).search(["Andorra " * 125_000], 1)


def test_servers_that_do_not_serve_the_same_index_are_refused(url: str) -> None:
    with misbehaving(lambda _: (404, b"")) as (foreign, _):
        assert len(HttpRetriever([foreign]).fingerprint()) == 64
        assert HttpRetriever([foreign]).fingerprint() == HttpRetriever([f"{foreign}/retrieve"]).fingerprint()
        with pytest.raises(UserError, match=r"not serve the same index .*hash-of-the-inde, .*an unknown one"):
            HttpRetriever([url, foreign]).fingerprint()
    with misbehaving(lambda _: (500, b"")) as (broken, _):
        assert HttpRetriever([broken, url], QUICK).fingerprint() == "hash-of-the-index"
        with pytest.raises(RetrieverDownError, match=rf"no retriever answers \({broken}: status 500\)"):
            HttpRetriever([broken], QUICK).fingerprint()


def test_a_server_that_comes_back_with_another_index_is_not_asked_on() -> None:
    with serving(lexical(), index="one") as url:
        retriever = HttpRetriever([url], QUICK)
        assert retriever.fingerprint() == "one"
        assert retriever.search(["Andorra"], 1)
    with (
        serving(lexical(), index="another", port=int(url.rpartition(":")[2])),
        pytest.raises(RetrieverDownError, match=r"it now serves index another, the run began with one"),
    ):
        retriever.search(["Andorra"], 1)


def _metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))
