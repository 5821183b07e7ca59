"""Real vLLM engines on the CPU, each started once; `make test-vllm` runs these tests in their own environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# In spawned processes too: passive waiting, no look at the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flows.run.model_files import model_folder
from sdsearch.model.policy import load_model, load_tokenizer
from sdsearch.protocol.parsing import TAG_PROTOCOL
from sdsearch.protocol.ports import ActionProtocol
from sdsearch.protocol.prompting import render_frame
from sdsearch.sampling.rollouts import RolloutLimits, RolloutLoop
from sdsearch.sampling.statistics import SamplingStatistics
from sdsearch.sampling.stopping import TurnEnds
from sdsearch.sampling.transformers_sampler import TransformersSampler
from sdsearch.sampling.vllm_engine import EngineOptions, VllmEngine
from sdsearch.sampling.vllm_turns import EventLoopThread, OverlappingSampler, TurnGenerator
from sdsearch.sampling.vllm_weights import PolicyWeights, ProbeResult, WeightProbe, probe_prompt, reader_of
from tests.support.fakes import FixedRetriever

MINI = Path(model_folder("mini"))
BASE = PolicyWeights(0, "base", str(MINI))
TOLERANCE = 1e-4  # Nats; the engine's float32 kernels are not torch's.


@dataclass
class Bench:
    """An engine with the model it was started from."""

    engine: VllmEngine
    loop: EventLoopThread
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    def probe(self, weights: PolicyWeights, model: object, *, load: bool = True) -> ProbeResult:
        """Load weights (or, withheld, do not) and compare with what the trainer holds."""
        if load:
            self.loop.run(self.engine.load(weights))
        probe = WeightProbe(probe_prompt(self.tokenizer, 1.0, 512), TOLERANCE)
        return probe.check(self.loop.run(self.engine.read(probe.prompt)), reader_of(model), weights)

    def sampler(self) -> OverlappingSampler:
        return overlapping(self.engine, self.loop, self.model, self.tokenizer)


def overlapping(
    engine: TurnGenerator,
    loop: EventLoopThread,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    protocol: ActionProtocol = TAG_PROTOCOL,
) -> OverlappingSampler:
    return OverlappingSampler(engine, loop, TurnEnds.of(model, tokenizer, protocol.stops), SamplingStatistics())


def rollout_loop(sampler: OverlappingSampler | TransformersSampler, tokenizer: PreTrainedTokenizerBase) -> RolloutLoop:
    limits = RolloutLimits(3, 40, 256, 160, 512, 2)
    return RolloutLoop(tokenizer, sampler, FixedRetriever(), limits, render_frame(tokenizer, "compact"))


def start(folder: Path, lora_rank: int, data_parallel_size: int = 1, max_model_len: int = 512) -> Bench:
    model, tokenizer = load_model(folder, "float32"), load_tokenizer(folder)
    options = EngineOptions(
        model=str(folder),
        dtype="float32",
        max_model_len=max_model_len,
        max_num_seqs=64,
        gpu_memory_utilization=0.1,
        kv_cache_bytes=2**28,
        tensor_parallel_size=1,
        data_parallel_size=data_parallel_size,
        enforce_eager=True,
        enable_sleep_mode=False,
        lora_rank=lora_rank,
        trust_remote_code=False,
        end_ids=tuple(TurnEnds.of(model, tokenizer).end_ids),
        num_threads=1,
    )
    loop = EventLoopThread()
    return Bench(VllmEngine.open(options, loop), loop, model, tokenizer, folder)


@pytest.fixture(scope="session")
def mini_engine() -> Iterator[Bench]:
    """An engine of the mini policy, for full tuning."""
    bench = start(MINI, lora_rank=0)
    yield bench
    bench.loop.run(bench.engine.close())
    bench.loop.close()


@pytest.fixture
def bench(mini_engine: Bench) -> Bench:
    """The mini policy's engine with the weights it was started with."""
    mini_engine.loop.run(mini_engine.engine.load(BASE))
    return mini_engine
