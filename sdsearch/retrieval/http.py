"""A retriever behind HTTP: the client's side of Search-R1's `/retrieve` protocol.

POST `/retrieve` `{"queries": [...], "topk": 3, "return_scores": true}` answers `{"result": [[{"document": {"id",
"contents"}, "score"}, ...], ...]}`, one list a query. Servers without scores may leave `score` out, or answer documents
alone, as objects or as their contents. Our own server also says what it serves, in the header `X-Index`.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import httpx
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from schemas.base import hash_json
from schemas.errors import UserError
from schemas.records.passage import Passage, SearchHit
from sdsearch.connections import bounded_answer, client_options, describe_failure
from sdsearch.data.readers import split_contents
from sdsearch.retrieval.ports import RetrieverDownError

logger = logging.getLogger(__name__)
_LONGEST_PAUSE_S: Final = 300.0
INDEX_HEADER: Final = "X-Index"
# What a server says about the request, not about itself: another attempt, or another server, would say the same.
_REFUSALS: Final = {400, 413, 422}


class _Answered(BaseModel):
    model_config = ConfigDict(strict=True)


class _Document(_Answered):
    id: str | int | None = None  # Some servers of the protocol (web search) send none.
    contents: str


class _Hit(_Answered):
    document: _Document
    score: Annotated[float, Field(allow_inf_nan=False)] | None = None


def _shape(found: Any) -> str:
    if isinstance(found, str):
        return "text"
    return "hit" if isinstance(found, dict) and "document" in found else "document"


# A document alone, as an object or as its contents, is what servers answer that have no scores or leave them out.
_Found = Annotated[
    Annotated[_Hit, Tag("hit")] | Annotated[_Document, Tag("document")] | Annotated[str, Tag("text")],
    Discriminator(_shape),
]


class _Answer(_Answered):
    result: list[list[_Found]]


@dataclass(frozen=True)
class HttpLimits:
    """How long and how often a server is asked, and how much at a time; times in seconds."""

    timeout_s: float = 30.0
    max_attempts: int = 5
    backoff_s: float = 0.5  # before the second round over the servers, doubled each time, with jitter
    queries_per_request: int = 128
    max_query_characters: int = 8192
    max_answer_bytes: int = 64 << 20


_LIMITS = HttpLimits()


class _RefusedError(Exception):
    """The server understood the request and will not answer it: asking again is of no use."""


class HttpRetriever:
    """Asks servers in turn; one that fails is passed over for the next, and a search fails only when all did."""

    def __init__(
        self, urls: Sequence[str], limits: HttpLimits = _LIMITS, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Talk to the servers at `urls` (such as http://127.0.0.1:8000), over connections that stay open.

        UserError for what cannot be a URL.
        """
        if not urls:
            raise ValueError("an HTTP retriever needs one URL or more")
        options = client_options(urls, "retrieval.urls")
        self._urls = list(dict.fromkeys(url.rstrip("/").removesuffix("/retrieve") for url in urls))
        self._limits = limits
        self._sleep = sleep
        # Reading the certificate authorities takes longer than many searches; plain HTTP needs none of them.
        needs_certificates = any(url.startswith("https:") for url in urls)
        self._client = httpx.Client(timeout=limits.timeout_s, verify=needs_certificates, **options)
        self._index: str | None = None
        self._turn = 0
        self.num_retries = 0
        self._retried: Counter[str] = Counter()

    def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
        """Return for each query up to `top_k` hits as the server ranks them; () means that nothing was found.

        Queries that are too long are cut. Raises RetrieverDownError, naming URL and query, when no server gave an
        answer that can be used, or what answers serves another index than the one that `fingerprint` has seen.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; ask for one passage or more")
        size, found = self._limits.queries_per_request, list[tuple[SearchHit, ...]]()
        for start in range(0, len(queries), size):
            asked, before = queries[start : start + size], self.num_retries
            found += self._ask([query[: self._limits.max_query_characters] for query in asked], top_k)
            if num_retries := self.num_retries - before:
                self._retried.update(dict.fromkeys(asked, num_retries))
        return found

    def take_retried(self) -> dict[str, int]:
        """Return the queries whose requests were repeated since this was last asked, and how often."""
        retried, self._retried = dict(self._retried), Counter()
        return retried

    def fingerprint(self) -> str:
        """Return what identifies the servers' index: the hash that ours tell, else the URLs themselves.

        A server that is down is passed over. Raises RetrieverDownError when none can be reached, UserError when two
        of them serve different indexes.
        """
        indexes: dict[str, str] = {}
        problems: dict[str, str] = {}
        for url in self._attempts():
            if url in indexes:
                continue
            try:
                indexes[url] = self._index_at(url)
                problems.pop(url, None)
            except (httpx.HTTPError, ValueError) as error:
                problems[url] = f"{url}: {_reason(error)}"
            if indexes and len(indexes) + len(problems) == len(self._urls):
                break
        if not indexes:
            raise RetrieverDownError(
                f"no retriever answers ({'; '.join(problems.values())}); start it, or correct retrieval.urls"
            )
        for problem in problems.values():
            logger.warning("a retriever does not answer and is passed over (%s)", problem)
        if len(set(indexes.values())) > 1:
            told = ", ".join(f"{url} has {index[:16] or 'an unknown one'}" for url, index in indexes.items())
            raise UserError(f"retrieval.urls: the servers do not serve the same index ({told}); name those that do")
        url, index = next(iter(indexes.items()))
        self._index, self._turn, self.num_retries = index or None, self._urls.index(url), 0
        return self._index or hash_json(["http", *sorted(self._urls)])

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def _ask(self, queries: list[str], top_k: int) -> list[tuple[SearchHit, ...]]:
        problem = ""
        for url in self._attempts():
            try:
                return self._post(url, queries, top_k)
            except _RefusedError as error:
                problem = f"{url} refused the request: {error}"
                break
            except (httpx.HTTPError, ValueError) as error:  # ValueError: an answer that is not of the protocol.
                problem = f"{url}: {_reason(error)}"
                logger.warning("the retriever failed (%s)", problem)
        more = f" and {len(queries) - 1} more" if len(queries) > 1 else ""
        raise RetrieverDownError(f"{problem}; no answer to {queries[0][:200]!r}{more}")

    def _attempts(self) -> Iterator[str]:
        """Yield the URL of each attempt, waiting between rounds over all servers."""
        pause_s = self._limits.backoff_s
        for attempt in range(max(self._limits.max_attempts, len(self._urls))):
            if attempt:
                self.num_retries += 1
                self._turn += 1
            if attempt and attempt % len(self._urls) == 0:
                # Clients must not come back in step; seeds of the run have nothing to do with this.
                self._sleep(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(2 * pause_s, max(pause_s, _LONGEST_PAUSE_S))
            yield self._urls[self._turn % len(self._urls)]

    def _index_at(self, url: str) -> str:
        """Return the hash of what a server serves, '' for a server that does not tell."""
        status, _, content = self._send("GET", f"{url}/health")
        if status >= 500:
            raise ValueError(f"status {status}")
        try:
            known = _Health.model_validate_json(content).index if status == 200 else None
        except ValidationError:
            return ""
        return known or ""

    def _post(self, url: str, queries: list[str], top_k: int) -> list[tuple[SearchHit, ...]]:
        body = {"queries": queries, "topk": top_k, "return_scores": True}
        status, headers, content = self._send("POST", f"{url}/retrieve", json=body)
        said = f"status {status}, {content[:200].decode('utf-8', 'replace')!r}"
        if status in _REFUSALS:
            raise _RefusedError(said)
        if status != 200:
            raise ValueError(said)
        served = headers.get(INDEX_HEADER)
        if self._index and served and served != self._index:
            raise ValueError(f"it now serves index {served[:16]}, the run began with {self._index[:16]}")
        lists = _Answer.model_validate_json(content).result
        if len(lists) != len(queries):
            raise ValueError(f"it answered {len(lists)} lists of passages for {len(queries)} queries")
        return [_hits(found[:top_k]) for found in lists]

    def _send(self, method: str, url: str, **options: Any) -> tuple[int, httpx.Headers, bytes]:
        limits = self._limits
        return bounded_answer(self._client, method, url, limits.timeout_s, limits.max_answer_bytes, **options)


class _Health(BaseModel):
    index: str | None = None


def _hits(found: Sequence[_Hit | _Document | str]) -> tuple[SearchHit, ...]:
    """Return a query's hits; where a server gives none of them a score, 1 / rank stands for it."""
    hits = [one if isinstance(one, _Hit) else _Hit(document=_document(one)) for one in found]
    has_scores = {hit.score is not None for hit in hits}
    if len(has_scores) > 1:
        raise ValueError("its answer has a score for some of a query's passages and none for others")
    return tuple(
        SearchHit(passage=_passage(hit.document), score=1 / rank if hit.score is None else hit.score)
        for rank, hit in enumerate(hits, 1)
    )


def _document(found: _Document | str) -> _Document:
    return _Document(contents=found) if isinstance(found, str) else found


def _passage(document: _Document) -> Passage:
    title, text = split_contents(document.contents)
    has_id = document.id not in (None, "")
    return Passage(id=str(document.id) if has_id else hash_json(document.contents)[:16], title=title, text=text)


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"its answer is not of the protocol ({where}: {first['msg']})"
    return describe_failure(error)
