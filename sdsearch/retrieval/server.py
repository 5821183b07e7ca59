"""A retriever over HTTP: Search-R1's `/retrieve` protocol, with limits, batching, health and metrics.

Requests that arrive while a search runs are searched together in the next one, large ones in pieces.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, Strict, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.records.passage import SearchHit
from sdsearch.retrieval.http import INDEX_HEADER
from sdsearch.retrieval.ports import Retriever, RetrieverDownError, search_all


@dataclass(frozen=True)
class ServerLimits:
    """What one request may ask; sizes in bytes and characters.

    Trainers send the queries of a whole batch at once: 512 questions with 5 rollouts are 2,560.
    """

    max_request_bytes: int = 64 << 20
    max_queries: int = 16_384
    max_query_characters: int = 65_536
    max_top_k: int = 100
    max_passages: int = 500_000  # queries times topk, which is what the answer takes in memory
    default_top_k: int = 3
    max_queries_together: int = 512


_LIMITS = ServerLimits()


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a whole number")
    return value


class _Request(BaseModel):
    """The protocol's request, read as Search-R1's own server reads it, or SkyRL's with one `query`.

    A number may be written "3" or 3.0, yes and no as 1 and 0; fields that are not of the protocol are passed over.
    """

    queries: list[Annotated[str, Strict()]] | None = None
    query: Annotated[str, Strict()] | None = None
    # None, null and 0: the server's own.
    topk: Annotated[int | None, BeforeValidator(_no_bool)] = Field(
        default=None, ge=0, validation_alias=AliasChoices("topk", "top_k")
    )
    return_scores: bool | None = None

    @model_validator(mode="after")
    def _one_way(self) -> _Request:
        if (self.queries is None) == (self.query is None):
            raise ValueError("expected queries, a list of texts, or query, one text")
        return self

    @property
    def asked(self) -> list[str]:
        """The queries, however they were sent."""
        return self.queries if self.queries is not None else [self.query or ""]


@dataclass(eq=False)
class _Job:
    """A request's queries, of which the first were searched."""

    queries: list[str]
    top_k: int
    hits: asyncio.Future[list[tuple[SearchHit, ...]]]
    found: list[tuple[SearchHit, ...]] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Queries that are still to be searched; none for a client that has gone or was told of an error."""
        return 0 if self.hits.done() else len(self.queries) - len(self.found)

    def take(self, number: int) -> list[str]:
        return self.queries[len(self.found) : len(self.found) + number]

    def put(self, found: list[tuple[SearchHit, ...]]) -> None:
        self.found += found
        if not self.left and not self.hits.done():
            self.hits.set_result(self.found)


class _Batcher:
    """Collects the queries of waiting requests and searches those that want as many passages in one call.

    An approximate index may find other passages when more are asked for, so that no request sees another's `topk`.
    A call searches at most `max_queries`, of each request a fair share: a large request is answered in pieces, and a
    small one that arrives meanwhile waits for the piece that is under way alone.
    """

    def __init__(self, retriever: Retriever, max_queries: int, metrics: _Metrics) -> None:
        self._retriever = retriever
        self._max_queries = max_queries
        self._metrics = metrics
        self._waiting: asyncio.Queue[_Job] = asyncio.Queue()

    async def search(self, queries: list[str], top_k: int) -> list[tuple[SearchHit, ...]]:
        if not queries:
            return []
        job = _Job(queries, top_k, asyncio.get_running_loop().create_future())
        await self._waiting.put(job)
        return await job.hits

    async def run(self) -> None:
        """Serve the queue until cancelled."""
        jobs: deque[_Job] = deque()
        while True:
            if not jobs:
                jobs.append(await self._waiting.get())
            while not self._waiting.empty():
                jobs.append(self._waiting.get_nowait())
            top_k = jobs[0].top_k
            chosen = [job for job in jobs if job.top_k == top_k][: self._max_queries]
            await self._answer(fair_shares([job.left for job in chosen], self._max_queries), chosen, top_k)
            others = [job for job in jobs if job not in chosen]
            jobs = deque(job for job in [*others, *chosen] if job.left)

    async def _answer(self, shares: list[int], jobs: list[_Job], top_k: int) -> None:
        """Search each job's next queries off the event loop; what the jobs get is hits or the error."""
        parts = [job.take(share) for job, share in zip(jobs, shares, strict=True)]
        queries = [query for part in parts for query in part]
        started = time.perf_counter()
        try:
            found = iter(await run_in_threadpool(search_all, self._retriever, queries, top_k))
        except Exception as error:  # A server answers 503 and lives on; the waiting requests get the reason.
            self._metrics.failures.inc()
            for job in jobs:
                if not job.hits.done():
                    job.hits.set_exception(RetrieverDownError(str(error)))
            return
        self._metrics.seconds.observe(time.perf_counter() - started)
        self._metrics.together.observe(len(queries))
        for job, part in zip(jobs, parts, strict=True):
            job.put([next(found) for _ in part])


def fair_shares(wanted: Sequence[int], most: int) -> list[int]:
    """Return how much each gets of `most`: what it wants, or as much as any other that wants more."""
    shares = [0] * len(wanted)
    for number, place in enumerate(sorted(range(len(wanted)), key=lambda place: wanted[place])):
        shares[place] = min(wanted[place], (most - sum(shares)) // (len(wanted) - number))
    return shares


class _Metrics:
    """Prometheus figures of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queries = Counter("sdsearch_queries", "Queries that were received.", registry=self.registry)
        self.refused = Counter("sdsearch_refused_requests", "Requests that were refused.", registry=self.registry)
        self.failures = Counter("sdsearch_failed_searches", "Searches that failed.", registry=self.registry)
        self.seconds = Histogram("sdsearch_search_seconds", "Seconds of a search.", registry=self.registry)
        self.together = Histogram(
            "sdsearch_queries_together",
            "Queries that were searched in one call.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            registry=self.registry,
        )


def make_app(retriever: Retriever, index: str, num_passages: int, limits: ServerLimits = _LIMITS) -> FastAPI:
    """Return the server's application; `index` is the hash of what it serves, told by `/health`."""
    metrics = _Metrics()
    batcher = _Batcher(retriever, limits.max_queries_together, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    app = FastAPI(title="SD-Search retriever", lifespan=lifespan, docs_url=None, redoc_url=None)

    app.add_middleware(_Guard, max_bytes=limits.max_request_bytes, refused=metrics.refused)

    @app.exception_handler(RequestValidationError)
    async def explained(_: Request, error: RequestValidationError) -> Response:
        # FastAPI's own answer repeats what was sent, however large.
        told = {".".join(str(part) for part in item["loc"]): item["msg"] for item in error.errors()}
        return JSONResponse({"detail": "; ".join(f"{place}: {message}" for place, message in told.items())}, 422)

    @app.post("/retrieve")
    async def retrieve(request: _Request) -> Response:
        top_k = request.topk or limits.default_top_k
        _check(request.asked, top_k, limits)
        metrics.queries.inc(len(request.asked))
        try:
            found = await batcher.search(request.asked, top_k)
        except RetrieverDownError as error:
            raise HTTPException(503, str(error)) from error
        # Off the event loop: thousands of passages take a while to be written down.
        return await run_in_threadpool(_answer, found, bool(request.return_scores), index)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "index": index, "num_passages": num_passages}

    @app.get("/metrics")
    async def figures() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _check(queries: Sequence[str], top_k: int, limits: ServerLimits) -> None:
    longest = max((len(query) for query in queries), default=0)
    for name, got, most in (
        ("queries", len(queries), limits.max_queries),
        ("characters of a query", longest, limits.max_query_characters),
        ("topk", top_k, limits.max_top_k),
        ("queries x topk", len(queries) * top_k, limits.max_passages),
    ):
        if got > most:
            raise HTTPException(422, f"{name}: {got}, at most {most} are answered; ask for less")


def _answer(found: Sequence[tuple[SearchHit, ...]], with_scores: bool, index: str) -> Response:
    rows = [[_row(hit, with_scores) for hit in hits] for hits in found]
    return JSONResponse({"result": rows}, headers={INDEX_HEADER: index})


class _Guard:
    """Stops reading a request's body at `max_bytes`, and counts the requests that were refused."""

    def __init__(self, app: ASGIApp, max_bytes: int, refused: Counter) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def receive_bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                raise HTTPException(413, f"the request is larger than {self._max_bytes} bytes; send fewer queries")
            return message

        async def send_counted(message: Message) -> None:
            if 400 <= message.get("status", 0) < 500:
                self._refused.inc()
            await send(message)

        await self._app(scope, receive_bounded, send_counted)


def _row(hit: SearchHit, with_score: bool) -> dict[str, Any]:
    document = {"id": hit.passage.id, "contents": hit.passage.contents}
    return {"document": document, "score": hit.score} if with_score else document
