"""Our server asked as other people's trainers ask theirs, and our client asked to read what other servers answer.

The requests are written down from the public sources that each test names; what a client reads of the answer is read
here in the same way.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest

from schemas.records.passage import Passage, SearchHit
from sdsearch.retrieval.http import HttpRetriever
from sdsearch.retrieval.ports import Retriever, RetrieverDownError
from sdsearch.retrieval.server import ServerLimits, fair_shares
from tests.sdsearch.retrieval.test_http_retriever import QUICK, misbehaving
from tests.support.serving import serving

PASSAGES = [Passage(id=str(number), title=f"T{number}", text=f"text {number}\nof two lines") for number in range(10)]


class Numbered:
    """Finds for the query "n" the passages n, n + 1, …, and notes how many queries and passages each call was for."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
        self.calls.append((len(queries), top_k))
        firsts = [int(query) for query in queries]
        return [
            tuple(SearchHit(passage=PASSAGES[(first + rank) % 10], score=1 / (1 + rank)) for rank in range(top_k))
            for first in firsts
        ]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(Numbered()) as url:
        yield url


def ask(url: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{url}/retrieve", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


def contents(first: int, number: int = 3) -> list[str]:
    return [PASSAGES[(first + rank) % 10].contents for rank in range(number)]


@pytest.mark.parametrize("num_queries", [0, 1, 512, 2560, 10_000])
def test_search_r1_and_autorefine(url: str, num_queries: int) -> None:
    """Search-R1's trainer, and AutoRefine's, which is built on it, send all queries of a batch in one request.

    search_r1/llm_agent/generation.py of PeterGriffinJin/Search-R1, `_batch_search` and `_passages2string`: 512
    questions and 5 rollouts have up to 2,560 queries; title and text are told apart by the first line break.
    """
    queries = [str(number) for number in range(num_queries)]
    found = ask(url, {"queries": queries, "topk": 3, "return_scores": True})
    assert len(found) == num_queries
    for number, hits in enumerate(found):
        texts = [hit["document"]["contents"] for hit in hits]
        assert texts == contents(number)
        assert texts[0].split("\n")[0] == f'"T{number % 10}"'


def test_search_r1s_example_script(url: str) -> None:
    """search_r1/search/retrieval_request.py of PeterGriffinJin/Search-R1: the documents alone without return_scores."""
    found = ask(url, {"queries": ["4", "5"], "topk": 5, "return_scores": False})
    assert [[document["contents"] for document in documents] for documents in found] == [contents(4, 5), contents(5, 5)]


@pytest.mark.parametrize("field", [{"queries": ["7"]}, {"query": "7"}])
def test_skyrl_gym_and_nemo_rl(url: str, field: dict[str, Any]) -> None:
    """skyrl-gym/skyrl_gym/tools/search.py of NovaSky-AI/SkyRL, `call_search_api`: one query, as `queries` or `query`.

    The search environments made after it for NeMo-RL send `query`. Either reads a list of lists.
    """
    found = ask(url, {**field, "topk": 3, "return_scores": True})
    assert [[hit["document"]["contents"].strip() for hit in hits] for hits in found] == [contents(7)]


def test_verls_search_tool(url: str) -> None:
    """verl/tools/utils/search_r1_like_utils.py of volcengine/verl: a conversation's queries, contents by lines."""
    found = ask(url, {"queries": ["1", "2"], "topk": 3, "return_scores": True})
    told = ["\n".join(hit["document"]["contents"].split("\n")[1:]) for hits in found for hit in hits]
    assert told == [PASSAGES[number].text for number in (1, 2, 3, 2, 3, 4)]


def test_slime(url: str) -> None:
    """examples/search-r1/local_search_server.py of THUDM/slime: no scores; reads `result[0]`, `contents` of each."""
    (documents,) = ask(url, {"queries": ["9"], "topk": 5, "return_scores": False})
    assert [document.get("contents", "") for document in documents] == contents(9, 5)


@pytest.mark.parametrize(
    ("asked", "number", "scored"),
    [
        ({"topk": "2", "return_scores": 1}, 2, True),
        ({"topk": 2.0, "return_scores": "true"}, 2, True),
        ({"topk": 2, "return_scores": 0}, 2, False),
        ({"topk": None, "return_scores": None}, 3, False),
        ({"topk": "0"}, 3, False),
        ({"top_k": 1, "user": "x"}, 1, False),
    ],
    ids=str,
)
def test_numbers_and_truths_are_read_as_search_r1s_server_reads_them(
    url: str, asked: dict[str, Any], number: int, scored: bool
) -> None:
    """`QueryRequest` of search_r1/search/retrieval_server.py is a pydantic model that converts."""
    (hits,) = ask(url, {"queries": ["3"], **asked})
    assert [hit["document"]["contents"] if scored else hit["contents"] for hit in hits] == contents(3, number)


def test_a_large_request_is_searched_in_pieces_and_a_small_one_does_not_wait_for_its_end() -> None:
    retriever, asked_first = Numbered(), threading.Event()

    class Slow:
        def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
            asked_first.set()
            time.sleep(0.05)
            return retriever.search(queries, top_k)

    done: list[str] = []
    with serving(Slow(), ServerLimits(max_queries_together=64)) as url:

        def send(name: str, queries: list[str], top_k: int) -> None:
            found = ask(url, {"queries": queries, "topk": top_k})
            assert [[document["contents"] for document in documents] for documents in found] == [
                contents(int(query), top_k) for query in queries
            ]
            done.append(name)

        large = threading.Thread(target=send, args=("large", [str(number) for number in range(1000)], 3))
        large.start()
        assert asked_first.wait(10)
        small = [threading.Thread(target=send, args=(f"small {top_k}", ["5"], top_k)) for top_k in (3, 2)]
        for thread in small:
            thread.start()
        for thread in [large, *small]:
            thread.join()
    assert max(number for number, _ in retriever.calls) == 64
    assert done[-1] == "large"
    assert sorted(done) == ["large", "small 2", "small 3"]
    assert sum(number for number, _ in retriever.calls) == 1002


@pytest.mark.parametrize(
    ("wanted", "most", "shares"),
    [
        ([], 4, []),
        ([1000], 64, [64]),
        ([1, 1000, 2], 64, [1, 61, 2]),
        ([100, 100], 64, [32, 32]),
        ([10, 100, 100], 64, [10, 27, 27]),
        ([1] * 64, 64, [1] * 64),
        ([3, 3], 64, [3, 3]),
    ],
)
def test_shares_are_fair(wanted: list[int], most: int, shares: list[int]) -> None:
    assert fair_shares(wanted, most) == shares


def test_an_error_in_one_piece_is_the_requests_error_and_the_server_lives_on() -> None:
    class Choosy(Numbered):
        def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
            if "13" in queries:
                raise RetrieverDownError("13 is not searched for")
            return super().search(queries, top_k)

    with serving(Choosy(), ServerLimits(max_queries_together=4)) as url:
        answer = httpx.post(f"{url}/retrieve", json={"queries": [str(number) for number in range(40)]})
        assert (answer.status_code, "13 is not searched for" in answer.text) == (503, True)
        assert len(ask(url, {"queries": ["1"] * 40})) == 40


def test_an_answer_that_would_not_fit_into_memory_is_refused(url: str) -> None:
    answer = httpx.post(f"{url}/retrieve", json={"queries": ["1"] * 6000, "topk": 100})
    assert answer.status_code == 422
    assert "queries x topk: 600000, at most 500000 are answered" in answer.text


CAPITAL = '"Andorra"\nA capital.'


@pytest.mark.parametrize(
    ("found", "identity", "scores"),
    [
        ([{"document": {"id": "7", "contents": CAPITAL}, "score": 0.5}], "7", [0.5]),
        ([{"document": {"id": 7, "contents": CAPITAL, "title": "x"}, "score": 2, "rank": 1}], "7", [2.0]),
        ([{"document": {"contents": CAPITAL}}] * 2, None, [1.0, 0.5]),
        ([{"document": {"contents": CAPITAL}, "score": None}], None, [1.0]),
        ([{"id": "7", "contents": CAPITAL}] * 3, "7", [1.0, 0.5, 1 / 3]),
        ([CAPITAL, CAPITAL], None, [1.0, 0.5]),
        ([], None, []),
    ],
    ids=str,
)
def test_what_other_servers_answer(found: list[Any], identity: str | None, scores: list[float]) -> None:
    """Scored documents are Search-R1's retrieval_server.py; its servers for web searches give no scores, its reranking
    one texts alone where none were asked for, and servers that do not know return_scores the documents alone."""
    with misbehaving(lambda _: (200, json.dumps({"result": [found]}).encode())) as (url, _):
        retriever: Retriever = HttpRetriever([url], QUICK)
        (hits,) = retriever.search(["capital"], 3)
    assert [hit.score for hit in hits] == pytest.approx(scores)
    assert {(hit.passage.title, hit.passage.text) for hit in hits} <= {("Andorra", "A capital.")}
    assert len({hit.passage.id for hit in hits}) == min(len(hits), 1), "the same contents are the same passage"
    assert identity is None or {hit.passage.id for hit in hits} == {identity}
