"""vLLM servers elsewhere: OpenAI-compatible completions with token ids in and out, adapters loaded at run time.

Turns are spread over the servers, those of a group to the same one (its prompt is cached there). A server that does
not answer is retired until the next change of weights; its turns are sent again, with the same seeds, to another.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
from tenacity import retry, retry_if_exception_type, retry_if_not_exception_type, stop_after_attempt

from sdsearch.connections import client_options
from sdsearch.protocol.parsing import TAG_PROTOCOL
from sdsearch.sampling.statistics import SamplingStatistics
from sdsearch.sampling.vllm_turns import EngineTurn, Prompt, SamplerError
from sdsearch.sampling.vllm_weights import PolicyWeights, ProbeReading, second_prompt

_CONNECT_S = 10.0


class _ServerDownError(Exception):
    """A server did not answer, or said that it cannot."""


@dataclass(frozen=True)
class ServerOptions:
    """Where the servers are and how they are spoken to."""

    run: str  # Part of the adapters' names: runs may share servers.
    urls: tuple[str, ...]
    api_key: str
    timeout_s: float
    max_num_seqs: int
    max_model_len: int
    end_ids: tuple[int, ...]
    adapters: bool  # The policy is tuned by LoRA.
    workspace_here: str
    workspace_there: str
    stops: tuple[str, ...] = tuple(TAG_PROTOCOL.stops)  # Strings that end a turn.


@dataclass
class _Server:
    url: str
    client: httpx.AsyncClient
    slots: asyncio.Semaphore
    model: str = ""  # As the server calls what is sampled from.
    base: str = ""
    folder: str = ""  # What the server was started with.
    down: str = ""  # Why it was retired.
    adapters: list[str] = field(default_factory=list)


class VllmServers:
    """Several servers as one `WeightedEngine`; made and used on one event loop."""

    def __init__(
        self,
        options: ServerOptions,
        statistics: SamplingStatistics,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        timeout = httpx.Timeout(options.timeout_s, connect=min(_CONNECT_S, options.timeout_s))
        limits = httpx.Limits(max_connections=None)
        self._options = options
        self.statistics = statistics
        self._homes: dict[str, _Server] = {}
        self._numbers = itertools.count(1)
        self._prefix = f"sdsearch-{options.run}-"
        self._session = uuid.uuid4().hex[:8]  # So that no adapter's name was ever used before.
        self._servers = [
            _Server(
                url.rstrip("/"),
                httpx.AsyncClient(
                    timeout=timeout,
                    headers=headers,
                    limits=limits,
                    transport=transport,
                    **client_options([url], "sampling.urls"),
                ),
                asyncio.Semaphore(options.max_num_seqs),
            )
            for url in options.urls
        ]

    async def generate(self, prompt: Prompt) -> EngineTurn:
        """Generate one turn on some server; SamplerError when none is left."""
        while True:
            server = self._home_of(prompt.request.key.rpartition("/")[0])
            try:
                async with server.slots:
                    return _turn((await self._complete(server, prompt))["choices"][0])
            except _ServerDownError as error:
                self._retire(server, str(error))
                self.statistics.num_resent_turns += 1

    async def read(self, prompt: Prompt) -> list[ProbeReading]:
        """Have every server generate two turns after the prompt, as any others are, and read it (see VllmEngine)."""
        answers = await self._on_all(lambda server: self._read(server, prompt))
        return [reading for _, reading in answers]

    async def _read(self, server: _Server, prompt: Prompt) -> ProbeReading:
        turn = _turn((await self._complete(server, prompt))["choices"][0])
        second = _turn((await self._complete(server, second_prompt(prompt, turn)))["choices"][0])
        text = (await self._complete(server, prompt, prompt_logprobs=0, max_tokens=1))["choices"][0]
        entries = zip(text["prompt_logprobs"][1:], prompt.token_ids[1:], strict=True)
        logprobs = tuple(_finite(entry[str(token)]["logprob"]) for entry, token in entries)
        return ProbeReading(f"the server {server.url}", logprobs, turn, second)

    async def load(self, weights: PolicyWeights) -> None:
        """Make these weights the ones that every server samples from; retired servers are tried again."""
        for server in self._servers:
            server.down = ""
        self._homes.clear()
        await self._on_all(lambda server: self._load(server, weights))

    async def close(self) -> None:
        """Drop this run's adapters and close the connections."""
        for server in self._servers:
            if not server.down:
                await asyncio.gather(*(self._unload(server, name) for name in server.adapters), return_exceptions=True)
            await server.client.aclose()

    async def _load(self, server: _Server, weights: PolicyWeights) -> None:
        await self._greet(server)
        if self._options.adapters:
            await self._load_adapter(server, weights)
        else:
            folder = server.folder if weights.kind == "base" else self._path_there(weights.folder)
            # vLLM serves these two in its development mode alone.
            await self._post(
                server, "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}}, "full"
            )
            await self._post(server, "/reset_prefix_cache", {}, "full")

    async def _load_adapter(self, server: _Server, weights: PolicyWeights) -> None:
        server.model = server.base
        for former in server.adapters[:]:
            await self._unload(server, former)
            server.adapters.remove(former)
        if weights.kind == "adapter":
            name = f"{self._prefix}{self._session}-{weights.version}-{next(self._numbers)}"
            await self._post(
                server,
                "/v1/load_lora_adapter",
                {"lora_name": name, "lora_path": self._path_there(weights.folder)},
                "lora",
            )
            server.adapters.append(name)
            server.model = name

    async def _greet(self, server: _Server) -> None:
        """Learn the base model's name and which adapters of this run are there, an earlier process's too."""
        models = (await self._request(server, "GET", "/v1/models"))["data"]
        base = next(model for model in models if not model.get("parent"))
        server.adapters = [model["id"] for model in models if model["id"].startswith(self._prefix)]
        if (longest := base.get("max_model_len") or 0) < self._options.max_model_len:
            raise SamplerError(
                f"{server.url} reads at most {longest} tokens, the run's conversations may have "
                f"{self._options.max_model_len}: start it with a larger --max-model-len, or set sampling.max_model_len"
            )
        server.folder, server.base, server.model = base["root"], base["id"], base["id"]

    async def _unload(self, server: _Server, name: str) -> None:
        await self._post(server, "/v1/unload_lora_adapter", {"lora_name": name}, "lora")

    def _path_there(self, folder: str) -> str:
        here, there = self._options.workspace_here, self._options.workspace_there
        return there + folder.removeprefix(here) if there and folder.startswith(here) else folder

    def _home_of(self, group: str) -> _Server:
        """Return the server of a group's turns: the one with the fewest groups among those that answer."""
        home = self._homes.get(group)
        if home is None or home.down:
            up = self._up()
            counts = Counter(server.url for server in self._homes.values())
            home = self._homes[group] = min(up, key=lambda server: counts[server.url])
        return home

    def _up(self) -> list[_Server]:
        up = [server for server in self._servers if not server.down]
        if not up:
            reasons = "; ".join(f"{server.url}: {server.down}" for server in self._servers)
            raise SamplerError(
                f"no vLLM server of sampling.urls answers ({reasons}); start them again, then resume the run: groups "
                "that were finished are kept"
            )
        return up

    def _retire(self, server: _Server, reason: str) -> None:
        server.down = server.down or reason

    async def _on_all(self, call: Any) -> list[tuple[_Server, Any]]:
        """Call every server that answers, retire those that do not, and return (server, answer) of the others."""
        up = self._up()
        answers = await asyncio.gather(*(call(server) for server in up), return_exceptions=True)
        for server, answer in zip(up, answers, strict=True):
            if isinstance(answer, _ServerDownError):
                self._retire(server, str(answer))
            elif isinstance(answer, BaseException):
                raise answer
        self._up()
        return [(server, answer) for server, answer in zip(up, answers, strict=True) if not server.down]

    async def _complete(self, server: _Server, prompt: Prompt, **extra: Any) -> Any:
        request = prompt.request
        body = {
            "model": server.model,
            "prompt": list(prompt.token_ids),
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            "logprobs": 0,
            "return_token_ids": True,
            "stop": list(self._options.stops),
            "include_stop_str_in_output": True,
            "stop_token_ids": list(self._options.end_ids),
            "skip_special_tokens": False,
            # All of them, since a server fills what is left out from the model folder's generation settings.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        answer = await self._request(server, "POST", "/v1/completions", body | extra)
        details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
        answer["choices"][0]["num_cached_tokens"] = details.get("cached_tokens") or 0
        return answer

    async def _post(self, server: _Server, path: str, body: dict[str, Any], tuning: Literal["full", "lora"]) -> None:
        needs = {
            "lora": "vllm serve … --enable-lora with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
            "full": "vllm serve … with VLLM_SERVER_DEV_MODE=1, or model.tuning = 'lora'",
        }
        await self._request(server, "POST", path, body, f"weights are changed through it: it needs {needs[tuning]}")

    async def _request(self, server: _Server, method: str, path: str, body: Any = None, hint: str = "") -> Any:
        response = await self._send(server, method, path, body)
        if response.status_code >= 500:
            raise _ServerDownError(f"status {response.status_code}: {response.text[:200]}")
        if response.status_code != 200:
            raise SamplerError(
                f"{server.url}{path} answered status {response.status_code}: {response.text[:300]}"
                f"{'; ' + hint if hint else '; it must be a vLLM server of this model'}"
            )
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return response.json() if is_json else response.text

    async def _send(self, server: _Server, method: str, path: str, body: Any) -> httpx.Response:
        try:
            return await _exchange(server.client, method, server.url + path, body)
        except httpx.TransportError as error:
            raise _ServerDownError(f"{type(error).__name__} {error}".strip()) from error


# A connection that was kept open may have been closed from the other side just now: one more attempt, at once.
@retry(
    stop=stop_after_attempt(2),
    retry=retry_if_exception_type(httpx.TransportError) & retry_if_not_exception_type(httpx.TimeoutException),
    reraise=True,
)
async def _exchange(client: httpx.AsyncClient, method: str, url: str, body: Any) -> httpx.Response:
    return await client.request(method, url, json=body)


def _turn(choice: dict[str, Any]) -> EngineTurn:
    token_ids = tuple(choice["token_ids"])
    given: Sequence[float | None] = (choice.get("logprobs") or {}).get("token_logprobs") or [None] * len(token_ids)
    stopped_by = str(choice.get("stop_reason") or choice["finish_reason"])
    return EngineTurn(token_ids, tuple(_finite(logprob) for logprob in given), choice["num_cached_tokens"], stopped_by)


def _finite(logprob: float | None) -> float | None:
    # -9999 is how vLLM's server writes minus infinity.
    return None if logprob is None or not math.isfinite(logprob) or logprob <= -9999.0 else logprob
