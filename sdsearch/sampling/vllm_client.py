"""One vLLM server, spoken to over HTTP: what it serves, turns from its data-parallel ranks, other weights."""

from __future__ import annotations

import itertools
import math
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import httpx
from tenacity import retry, retry_if_exception_type, retry_if_not_exception_type, stop_after_attempt

from sdsearch.connections import client_options
from sdsearch.protocol.parsing import TAG_PROTOCOL
from sdsearch.sampling.vllm_turns import EngineTurn, Prompt, SamplerError
from sdsearch.sampling.vllm_weights import PolicyWeights, ProbeReading, read_replica

_CONNECT_S: Final = 10.0
_RANK_HEADER: Final = "X-data-parallel-rank"
_NO_RANK: Final = 2**31 - 1
_RANKS: Final = re.compile(r"data_parallel_rank \d+ is out of range \[0, (\d+)\)")
_NEEDS: Final = {
    "lora": "vllm serve … --enable-lora with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
    "full": "vllm serve … with VLLM_SERVER_DEV_MODE=1, or model.tuning = 'lora'",
}


class ServerDownError(Exception):
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
    session: str = field(default_factory=lambda: uuid.uuid4().hex[:8])  # So that no adapter's name was used before.

    @property
    def prefix(self) -> str:
        """How the names of this run's adapters begin."""
        return f"sdsearch-{self.run}-"


class ServerClient:
    """One server; its coroutines run on one event loop."""

    def __init__(self, url: str, options: ServerOptions, transport: httpx.AsyncBaseTransport | None) -> None:
        self.url = url.rstrip("/")
        self.down = ""  # Why it was retired.
        self.num_ranks = 1
        self._options = options
        self._model = self._base = ""  # As the server calls what is sampled from, and what it was started with.
        self._folder = ""
        self._adapters: list[str] = []
        self._numbers = itertools.count(1)
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(options.timeout_s, connect=min(_CONNECT_S, options.timeout_s)),
            headers={"Authorization": f"Bearer {options.api_key}"} if options.api_key else {},
            limits=httpx.Limits(max_connections=None),
            transport=transport,
            **client_options([url], "sampling.urls"),
        )

    async def generate(self, prompt: Prompt, rank: int) -> EngineTurn:
        """Generate one turn on a data-parallel rank; ServerDownError when the server does not answer."""
        return _turn(await self._complete(prompt, rank))

    async def read(self, prompt: Prompt, rank: int) -> ProbeReading:
        """Have a data-parallel rank read the probe (see read_replica)."""

        async def text() -> list[float | None]:
            given = (await self._complete(prompt, rank, prompt_logprobs=0, max_tokens=1))["prompt_logprobs"]
            entries = zip(given[1:], prompt.token_ids[1:], strict=True)
            return [_finite(entry[str(token)]["logprob"]) for entry, token in entries]

        which = f"data-parallel rank {rank} of the server" if self.num_ranks > 1 else "the server"
        return await read_replica(f"{which} {self.url}", prompt, lambda prompt: self.generate(prompt, rank), text)

    async def load(self, weights: PolicyWeights) -> None:
        """Learn what the server is and make these weights the ones that all its ranks sample from."""
        await self._greet()
        if self._options.adapters:
            await self._load_adapter(weights)
        else:
            folder = self._folder if weights.kind == "base" else self._path_there(weights.folder)
            # vLLM serves these two in its development mode alone.
            await self._post(
                "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}}, "full"
            )
            await self._post("/reset_prefix_cache", {}, "full")

    async def close(self) -> None:
        """Drop this run's adapters, where the server answers, and close the connections."""
        if not self.down:
            try:
                for name in self._adapters:
                    await self._unload(name)
            except (ServerDownError, SamplerError):  # It is gone, and they with it.
                pass
        await self._client.aclose()

    async def _greet(self) -> None:
        """Learn the base model's name, which adapters of this run are there, and how many data-parallel ranks."""
        models = (await self._request("GET", "/v1/models"))["data"]
        base = next(model for model in models if not model.get("parent"))
        self._adapters = [model["id"] for model in models if model["id"].startswith(self._options.prefix)]
        if (longest := base.get("max_model_len") or 0) < self._options.max_model_len:
            raise SamplerError(
                f"{self.url} reads at most {longest} tokens, the run's conversations may have "
                f"{self._options.max_model_len}: start it with a larger --max-model-len, or set sampling.max_model_len"
            )
        self._folder, self._base, self._model = base["root"], base["id"], base["id"]
        self.num_ranks = await self._count_ranks()

    async def _count_ranks(self) -> int:
        """Ask for a rank that there cannot be: vLLM refuses it and says which there are."""
        body = {"model": self._base, "prompt": [0], "max_tokens": 1}
        response = await self._send("POST", "/v1/completions", body, {_RANK_HEADER: str(_NO_RANK)})
        told = _RANKS.search(response.text)
        return int(told[1]) if told else 1

    async def _load_adapter(self, weights: PolicyWeights) -> None:
        self._model = self._base
        for former in self._adapters[:]:
            await self._unload(former)
            self._adapters.remove(former)
        if weights.kind == "adapter":
            name = f"{self._options.prefix}{self._options.session}-{weights.version}-{next(self._numbers)}"
            body = {"lora_name": name, "lora_path": self._path_there(weights.folder)}
            await self._post("/v1/load_lora_adapter", body, "lora")
            self._adapters.append(name)
            self._model = name

    async def _unload(self, name: str) -> None:
        await self._post("/v1/unload_lora_adapter", {"lora_name": name}, "lora")

    def _path_there(self, folder: str) -> str:
        here, there = self._options.workspace_here, self._options.workspace_there
        return there + folder.removeprefix(here) if there and folder.startswith(here) else folder

    async def _complete(self, prompt: Prompt, rank: int, **extra: Any) -> Any:
        """Return the one choice of a completion, with the number of its prompt's tokens that were cached."""
        request = prompt.request
        body = {
            "model": self._model,
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
        headers = {_RANK_HEADER: str(rank)} if self.num_ranks > 1 else {}
        answer = await self._request("POST", "/v1/completions", body | extra, headers=headers)
        details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
        return {**answer["choices"][0], "num_cached_tokens": details.get("cached_tokens") or 0}

    async def _post(self, path: str, body: dict[str, Any], tuning: Literal["full", "lora"]) -> None:
        await self._request("POST", path, body, f"weights are changed through it: it needs {_NEEDS[tuning]}")

    async def _request(
        self, method: str, path: str, body: Any = None, hint: str = "", headers: dict[str, str] | None = None
    ) -> Any:
        response = await self._send(method, path, body, headers or {})
        if response.status_code >= 500:
            raise ServerDownError(f"status {response.status_code}: {response.text[:200]}")
        if response.status_code != 200:
            raise SamplerError(
                f"{self.url}{path} answered status {response.status_code}: {response.text[:300]}"
                f"{'; ' + hint if hint else '; it must be a vLLM server of this model'}"
            )
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return response.json() if is_json else response.text

    async def _send(self, method: str, path: str, body: Any, headers: dict[str, str]) -> httpx.Response:
        try:
            return await _exchange(self._client, method, self.url + path, body, headers)
        except httpx.TransportError as error:
            raise ServerDownError(f"{type(error).__name__} {error}".strip()) from error


# A connection that was kept open may have been closed from the other side just now: one more attempt, at once.
@retry(
    stop=stop_after_attempt(2),
    retry=retry_if_exception_type(httpx.TransportError) & retry_if_not_exception_type(httpx.TimeoutException),
    reraise=True,
)
async def _exchange(
    client: httpx.AsyncClient, method: str, url: str, body: Any, headers: dict[str, str]
) -> httpx.Response:
    return await client.request(method, url, json=body, headers=headers)


def _turn(choice: dict[str, Any]) -> EngineTurn:
    token_ids = tuple(choice["token_ids"])
    given: Sequence[float | None] = (choice.get("logprobs") or {}).get("token_logprobs") or [None] * len(token_ids)
    stopped_by = str(choice.get("stop_reason") or choice["finish_reason"])
    return EngineTurn(token_ids, tuple(_finite(logprob) for logprob in given), choice["num_cached_tokens"], stopped_by)


def _finite(logprob: float | None) -> float | None:
    # -9999 is how vLLM's server writes minus infinity.
    return None if logprob is None or not math.isfinite(logprob) or logprob <= -9999.0 else logprob
