"""A vLLM engine beside the trainer: tokens in, tokens out, weights changed in place.

vLLM is imported here alone, and only when an engine is opened.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from sdsearch.protocol.parsing import TAG_PROTOCOL
from sdsearch.sampling.homes import Homes, group_of
from sdsearch.sampling.vllm_turns import EngineTurn, EventLoopThread, Prompt, SamplerError
from sdsearch.sampling.vllm_weights import PolicyWeights, ProbeReading, read_replica
from sdsearch.sampling.vllm_worker import OWNER_VARIABLE

_CARDS = "CUDA_VISIBLE_DEVICES"
_CPU_BLOCK = 32
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # What vLLM accepts.
_ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # The trainer has threads and may have CUDA: it must not be forked.
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    # On a CPU the engine shares the trainer's cores, one of them working at a time.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass(frozen=True)
class EngineOptions:
    """How the engine is started; names are vLLM's."""

    model: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    gpu_memory_utilization: float
    kv_cache_bytes: int  # 0: what the share of the memory leaves.
    tensor_parallel_size: int
    data_parallel_size: int
    enforce_eager: bool
    enable_sleep_mode: bool
    lora_rank: int  # 0: no adapters.
    trust_remote_code: bool
    end_ids: tuple[int, ...]
    num_threads: int
    cards: tuple[str, ...] = ()  # As CUDA_VISIBLE_DEVICES has them; empty: those of this process.
    stops: tuple[str, ...] = tuple(TAG_PROTOCOL.stops)  # Strings that end a turn.


def check_installed() -> None:
    """Raise SamplerError when vLLM is not installed here."""
    if find_spec("vllm") is None:
        raise SamplerError(
            "sampling.kind 'vllm' needs vLLM, which is not installed here; install the extra with "
            "pip install -e '.[vllm]' where there is a GPU, with make vllm-install where there is none, or set "
            "sampling.kind = 'transformers'"
        )


class VllmEngine:
    """One vLLM engine; its coroutines run on the loop that it was opened on."""

    def __init__(self, options: EngineOptions, engine: Any) -> None:
        self._options = options
        self._engine = engine
        self._ranks = range(options.data_parallel_size)
        self._homes: Homes[int] = Homes()
        self._numbers = itertools.count(1)
        self._adapter: Any = None

    @staticmethod
    def open(options: EngineOptions, loop: EventLoopThread) -> VllmEngine:
        """Start an engine; SamplerError when vLLM is not installed or does not start."""
        check_installed()
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("OMP_NUM_THREADS", str(options.num_threads))
        os.environ[OWNER_VARIABLE] = str(os.getpid())
        with _showing(options.cards):
            return loop.run(_open(options))

    async def generate(self, prompt: Prompt) -> EngineTurn:
        """Generate one turn (see TurnGenerator), on the data-parallel rank of its group."""
        return await self._generate_on(self._homes.of(group_of(prompt.request.key), self._ranks), prompt)

    async def read(self, prompt: Prompt) -> list[ProbeReading]:
        """Have every data-parallel rank read the probe (see read_replica)."""
        return await asyncio.gather(*(self._read_on(rank, prompt) for rank in self._ranks))

    async def _generate_on(self, rank: int, prompt: Prompt) -> EngineTurn:
        return _turn(await self._finished(rank, prompt, {}))

    async def _read_on(self, rank: int, prompt: Prompt) -> ProbeReading:
        async def text() -> list[float | None]:
            output = await self._finished(rank, prompt, {"prompt_logprobs": 0, "max_tokens": 1})
            given = zip(output.prompt_logprobs[1:], prompt.token_ids[1:], strict=True)
            return [_finite(logprobs[token].logprob) for logprobs, token in given]

        name = f"data-parallel rank {rank} of the vLLM engine" if len(self._ranks) > 1 else "the vLLM engine"
        return await read_replica(name, prompt, lambda prompt: self._generate_on(rank, prompt), text)

    async def load(self, weights: PolicyWeights) -> None:
        """Make these weights the ones that are sampled from on all ranks; no turn may be under way."""
        self._homes.forget()
        with _death_told():
            if self._options.lora_rank:
                await self._load_adapter(weights)
            else:
                await self._engine.collective_rpc("reload_policy", args=(weights.folder,))
            emptied = await self._engine.reset_prefix_cache()
        if not emptied:
            raise SamplerError("vLLM kept prefixes that former weights computed: a turn is still being generated")

    async def _load_adapter(self, weights: PolicyWeights) -> None:
        from vllm.lora.request import LoRARequest

        if self._adapter is not None:
            await self._engine.remove_lora(self._adapter.lora_int_id)
            self._adapter = None
        if weights.kind == "adapter":
            number = next(self._numbers)
            adapter = LoRARequest(f"version-{weights.version}-{number}", number, weights.folder)
            await self._engine.add_lora(adapter)
            self._adapter = adapter

    async def sleep(self) -> None:
        """Free the GPU: cached keys and values are dropped, and all weights too where they are reloaded anyway.

        With adapters the base's weights go to the host's memory (vLLM's level 1), else nowhere (level 2).
        """
        await self._engine.sleep(level=1 if self._options.lora_rank else 2)

    async def wake_up(self, part: Literal["weights", "kv_cache"]) -> None:
        """Take the GPU's memory again, a part at a time; the room of dropped weights must then be loaded."""
        await self._engine.wake_up(tags=[part])

    async def close(self) -> None:
        """Stop the engine's processes."""
        self._engine.shutdown()

    async def _finished(self, rank: int, prompt: Prompt, extra: dict[str, Any]) -> Any:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        request = prompt.request
        wanted = {
            "temperature": request.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "seed": request.seed,
            "max_tokens": request.max_new_tokens,
            "logprobs": 0,
            "stop": list(self._options.stops),
            "include_stop_str_in_output": True,
            "stop_token_ids": list(self._options.end_ids),
            "skip_special_tokens": False,
            "output_kind": RequestOutputKind.FINAL_ONLY,
        }
        params = SamplingParams(**{**wanted, **extra})
        name = f"{request.key}-{next(self._numbers)}"
        tokens = TokensPrompt(prompt_token_ids=list(prompt.token_ids))
        with _death_told():
            turns = self._engine.generate(tokens, params, name, lora_request=self._adapter, data_parallel_rank=rank)
            async for output in turns:
                finished = output
        return finished


@contextmanager
def _death_told() -> Iterator[None]:
    """Say it in a sentence when the engine's processes are gone."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise SamplerError(
            "the vLLM engine died (memory, or a GPU that failed; VLLM_LOGGING_LEVEL=INFO shows what it says); resume "
            "the run: groups that were finished are kept"
        ) from error


@contextmanager
def _showing(cards: Sequence[str]) -> Iterator[None]:
    """Have the processes that are started within the block see these cards alone; all where there are none.

    This process sees what it saw: by now it has its model on its own device.
    """
    former = os.environ.get(_CARDS)
    if cards:
        os.environ[_CARDS] = ",".join(cards)
    try:
        yield
    finally:
        if former is not None:
            os.environ[_CARDS] = former
        elif cards:
            del os.environ[_CARDS]


async def _open(options: EngineOptions) -> VllmEngine:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    adapters = {"enable_lora": True, "max_loras": 1, "max_lora_rank": _rank(options.lora_rank)}
    arguments = AsyncEngineArgs(
        model=options.model,
        dtype=options.dtype,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        gpu_memory_utilization=options.gpu_memory_utilization,
        kv_cache_memory_bytes=options.kv_cache_bytes or None,
        tensor_parallel_size=options.tensor_parallel_size,
        data_parallel_size=options.data_parallel_size,
        enforce_eager=options.enforce_eager,
        enable_sleep_mode=options.enable_sleep_mode,
        trust_remote_code=options.trust_remote_code,
        enable_prefix_caching=True,
        # Whole blocks are cached: those of 128 tokens, a CPU's default, hold most conversations.
        block_size=_CPU_BLOCK if current_platform.is_cpu() else None,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",  # Not the model folder's: its top_p or penalties would change the policy.
        load_format="safetensors",
        disable_log_stats=True,
        use_tqdm_on_load=False,
        worker_extension_cls="sdsearch.sampling.vllm_worker.WorkerExtension",
        **(adapters if options.lora_rank else {}),
    )
    try:
        return VllmEngine(options, AsyncLLM.from_engine_args(arguments))
    except (RuntimeError, ValueError, OSError) as error:
        raise SamplerError(
            f"vLLM could not be started with model '{options.model}': {str(error).splitlines()[0]}; "
            "VLLM_LOGGING_LEVEL=INFO shows what it says, and settings under [sampling] are handed to it"
        ) from error


def _rank(rank: int) -> int:
    """Return the smallest rank that vLLM reserves room for and that holds the adapters."""
    fitting = [known for known in _LORA_RANKS if known >= rank]
    if not fitting:
        raise SamplerError(f"model.lora_rank is {rank}, vLLM takes adapters up to rank {_LORA_RANKS[-1]}")
    return fitting[0]


def _turn(output: Any) -> EngineTurn:
    completion = output.outputs[0]
    token_ids = tuple(completion.token_ids)
    given: Sequence[Any] = completion.logprobs or [{}] * len(token_ids)
    logprobs = tuple(
        _finite(entry[token].logprob) if token in entry else None for entry, token in zip(given, token_ids, strict=True)
    )
    stopped_by = str(completion.stop_reason or completion.finish_reason)
    return EngineTurn(token_ids, logprobs, output.num_cached_tokens or 0, stopped_by)


def _finite(logprob: float) -> float | None:
    return logprob if math.isfinite(logprob) else None
