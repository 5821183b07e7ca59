"""vLLM servers elsewhere: OpenAI-compatible completions with token ids in and out, adapters loaded at run time.

Turns are spread over the servers and their data-parallel ranks, those of a group to the same rank (its prompt is cached
there). A server that does not answer is retired until the next change of weights; its turns are sent again, with the
same seeds, to another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import httpx

from sdsearch.sampling.homes import Homes, group_of
from sdsearch.sampling.statistics import SamplingStatistics
from sdsearch.sampling.vllm_client import ServerClient, ServerDownError, ServerOptions
from sdsearch.sampling.vllm_turns import EngineTurn, Prompt, SamplerError
from sdsearch.sampling.vllm_weights import PolicyWeights, ProbeReading

T = TypeVar("T")


class _Replica(NamedTuple):
    """A copy of the model: one data-parallel rank of a server."""

    server: ServerClient
    rank: int


class VllmServers:
    """Several servers as one `WeightedEngine`; made and used on one event loop."""

    def __init__(
        self,
        options: ServerOptions,
        statistics: SamplingStatistics,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.statistics = statistics
        self._servers = [ServerClient(url, options, transport) for url in options.urls]
        self._homes: Homes[_Replica] = Homes()
        self._max_num_seqs = options.max_num_seqs
        self._slots: dict[_Replica, asyncio.Semaphore] = {}

    async def generate(self, prompt: Prompt) -> EngineTurn:
        """Generate one turn on some server; SamplerError when none is left."""
        while True:
            home = self._homes.of(group_of(prompt.request.key), self._replicas())
            try:
                async with self._slots.setdefault(home, asyncio.Semaphore(self._max_num_seqs)):
                    return await home.server.generate(prompt, home.rank)
            except ServerDownError as error:
                _retire(home.server, str(error))
                self.statistics.num_resent_turns += 1

    async def read(self, prompt: Prompt) -> list[ProbeReading]:
        """Have every data-parallel rank of every server read the probe (see read_replica)."""
        return await self._on_all(self._replicas(), lambda replica: replica.server.read(prompt, replica.rank))

    async def load(self, weights: PolicyWeights) -> None:
        """Make these weights the ones that every server samples from; retired servers are tried again."""
        for server in self._servers:
            server.down = ""
        self._homes.forget()
        await self._on_all([_Replica(server, 0) for server in self._servers], lambda one: one.server.load(weights))

    async def close(self) -> None:
        """Drop this run's adapters and close the connections."""
        for server in self._servers:
            await server.close()

    def _replicas(self) -> list[_Replica]:
        """Return those of the servers that answer; SamplerError when none does."""
        up = [server for server in self._servers if not server.down]
        if not up:
            reasons = "; ".join(f"{server.url}: {server.down}" for server in self._servers)
            raise SamplerError(
                f"no vLLM server of sampling.urls answers ({reasons}); start them again, then resume the run: groups "
                "that were finished are kept"
            )
        # Rank by rank: the first groups go to different servers.
        most = max(server.num_ranks for server in up)
        return [_Replica(server, rank) for rank in range(most) for server in up if rank < server.num_ranks]

    async def _on_all(self, replicas: list[_Replica], call: Callable[[_Replica], Awaitable[T]]) -> list[T]:
        """Call all, retire servers that do not answer, and return the others' answers."""
        answers = await asyncio.gather(*(call(replica) for replica in replicas), return_exceptions=True)
        told: list[tuple[_Replica, T]] = []
        for replica, answer in zip(replicas, answers, strict=True):
            if isinstance(answer, ServerDownError):
                _retire(replica.server, str(answer))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                told.append((replica, answer))
        self._replicas()
        return [answer for replica, answer in told if not replica.server.down]


def _retire(server: ServerClient, reason: str) -> None:
    server.down = server.down or reason
