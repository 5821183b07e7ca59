"""Conversations over an engine that generates single turns: no barrier between turns.

Turns are generated on an event loop in its own thread while the caller's thread hands ended turns to the
environment; whatever has ended meanwhile is its next batch.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from schemas.errors import UserError
from sdsearch.sampling.ports import Respond, SampledTurn, TurnRequest
from sdsearch.sampling.statistics import SamplingStatistics
from sdsearch.sampling.stopping import TurnEnds

T = TypeVar("T")
# Turns that end in one engine step arrive within this time of each other; the engine goes on meanwhile.
_TOGETHER_S = 0.002


class SamplerError(UserError):
    """The engine cannot sample, or cannot be trusted to sample from the current weights."""


@dataclass(frozen=True)
class Prompt:
    """All tokens of a conversation so far, and how its next turn is sampled."""

    token_ids: tuple[int, ...]
    request: TurnRequest


@dataclass(frozen=True)
class EngineTurn:
    """What an engine returned for a prompt; log-probabilities that are missing or not finite are None."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    num_cached_tokens: int
    stopped_by: str  # The engine's own words, for messages.


class TurnGenerator(Protocol):
    """Generates one turn; many are awaited at one time."""

    async def generate(self, prompt: Prompt) -> EngineTurn: ...


class EventLoopThread:
    """An event loop in a thread of its own, for libraries that only speak asyncio; works in notebooks too."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sampling", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine and return at once."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return self.submit(coroutine).result()

    def close(self) -> None:
        """Stop the loop; what still runs on it is dropped."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class OverlappingSampler:
    """The `Sampler` over a `TurnGenerator`: rollouts search while their siblings still generate."""

    def __init__(
        self, generator: TurnGenerator, loop: EventLoopThread, ends: TurnEnds, statistics: SamplingStatistics
    ) -> None:
        self._generator = generator
        self._loop = loop
        self._ends = ends
        self._statistics = statistics

    def converse(self, openings: Sequence[TurnRequest], respond: Respond) -> None:
        """Generate until no conversation goes on (see the port).

        Raises what the engine or the environment raised; the other turns are cancelled first.
        """
        histories: dict[str, tuple[int, ...]] = {}
        running: dict[Future[EngineTurn], Prompt] = {}
        ended: SimpleQueue[Future[EngineTurn]] = SimpleQueue()
        requests = openings
        try:
            while requests or running:
                self._send(requests, histories, running, ended)
                turns = [self._read(future, running.pop(future), histories) for future in _take(ended)]
                began = time.perf_counter()
                requests = respond(turns)
                self._statistics.retrieval_s += time.perf_counter() - began
        finally:
            for future in running:
                future.cancel()
            self._statistics.stopped()

    def _send(
        self,
        requests: Sequence[TurnRequest],
        histories: dict[str, tuple[int, ...]],
        running: dict[Future[EngineTurn], Prompt],
        ended: SimpleQueue[Future[EngineTurn]],
    ) -> None:
        self._statistics.started(len(requests))
        for request in requests:
            histories[request.key] = (*histories.get(request.key, ()), *request.token_ids)
            prompt = Prompt(histories[request.key], request)
            future = self._loop.submit(self._generator.generate(prompt))
            running[future] = prompt
            future.add_done_callback(lambda future: self._note_end(future, ended))

    def _note_end(self, future: Future[EngineTurn], ended: SimpleQueue[Future[EngineTurn]]) -> None:
        if not future.cancelled():
            self._statistics.ended()
        ended.put(future)

    def _read(self, future: Future[EngineTurn], prompt: Prompt, histories: dict[str, tuple[int, ...]]) -> SampledTurn:
        turn, request = future.result(), prompt.request
        self._statistics.read(len(prompt.token_ids), turn.num_cached_tokens, len(turn.token_ids))
        end = self._ends.first_end(turn.token_ids, request.max_new_tokens)
        if end is None:
            raise SamplerError(
                f"the engine ended a turn of '{request.key}' after {len(turn.token_ids)} of {request.max_new_tokens} "
                f"tokens for a reason of its own ({turn.stopped_by}): no closing tag, no end of turn. Its limits must "
                "not be below the run's: compare sampling.max_model_len with rollout.max_* and the model's context"
            )
        # Tokens beyond the end were sampled by an engine that looked too late; the turn is what comes before.
        count, reason = end
        histories[request.key] = (*histories[request.key], *turn.token_ids[:count])
        return SampledTurn(request.key, turn.token_ids[:count], turn.logprobs[:count], reason)


def _take(ended: SimpleQueue[Future[EngineTurn]]) -> list[Future[EngineTurn]]:
    """Wait for a turn to end and return it with all that ended at the same time."""
    futures = [ended.get()]
    time.sleep(_TOGETHER_S)
    while True:
        try:
            futures.append(ended.get_nowait())
        except Empty:
            return futures
