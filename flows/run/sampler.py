"""Which sampler a run uses, and that it samples from the policy's current weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol, assert_never

from flows.console.errors import UserError
from flows.run.cards import engine_cards, free_cached
from flows.run.policy import LivePolicy
from schemas.records.reports import SamplingReport
from schemas.settings.cards import engine_sleeps
from schemas.settings.root import RolloutSettings, Settings
from schemas.settings.sampling import TransformersSamplerSettings, VllmSamplerSettings, VllmServerSamplerSettings
from sdsearch.model.policy import causal_lm
from sdsearch.protocol.ports import open_protocol
from sdsearch.sampling.ports import RolloutListener, Sampler
from sdsearch.sampling.statistics import SamplingStatistics
from sdsearch.sampling.stopping import TurnEnds
from sdsearch.sampling.transformers_sampler import TransformersSampler
from sdsearch.sampling.vllm_client import ServerOptions
from sdsearch.sampling.vllm_engine import EngineOptions, VllmEngine, check_installed
from sdsearch.sampling.vllm_server import VllmServers
from sdsearch.sampling.vllm_turns import EventLoopThread, OverlappingSampler
from sdsearch.sampling.vllm_weights import PolicyWeights, ProbeResult, WeightProbe, probe_prompt
from sdsearch.training.trial import num_trial_tokens


class PolicySampler(Protocol):
    """Gives samplers of the live policy, and what they did."""

    def max_context_tokens(self, policy: LivePolicy) -> int:
        """Return how long a conversation may be, prompt included."""
        ...

    def at(self, policy: LivePolicy, listener: RolloutListener | None = None) -> Sampler:
        """Return a sampler of the policy's present weights; SamplerError when it cannot be shown to be one.

        `listener` is told of each token where the sampler learns of single tokens.
        """
        ...

    def in_process(self, policy: LivePolicy) -> Sampler | None:
        """Return a sampler that runs in this process, None for an engine, which is probed at each swap of weights."""
        ...

    def release(self) -> SamplingReport | None:
        """Leave the device to the trainer; return what was sampled since the last release, None for nothing."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


def open_sampler(settings: Settings, run: str, workspace: Path) -> PolicySampler:
    """Return the run's sampler; engines start when they are first needed.

    Raises UserError when what `sampling.kind` names cannot be used here.
    """
    match settings.sampling:
        case TransformersSamplerSettings():
            return TransformersPolicySampler(settings.rollout)
        case VllmSamplerSettings():
            check_installed()
        case VllmServerSamplerSettings(api_key_env=name):
            if name and not os.environ.get(name):
                raise UserError(
                    f"sampling.api_key_env names the environment variable {name}, which is not set; export it"
                )
        case unknown:
            assert_never(unknown)
    return VllmPolicySampler(settings, run, workspace)


class TransformersPolicySampler:
    """Samples with the trainer's own model: the weights cannot differ."""

    def __init__(self, rollout: RolloutSettings) -> None:
        self._rollout = rollout

    def max_context_tokens(self, policy: LivePolicy) -> int:
        return policy.max_context_tokens

    def at(self, policy: LivePolicy, listener: RolloutListener | None = None) -> Sampler:
        return TransformersSampler(policy.model, policy.tokenizer, open_protocol(self._rollout), listener)

    def in_process(self, policy: LivePolicy) -> Sampler:
        return self.at(policy)

    def release(self) -> SamplingReport | None:
        return None

    def close(self) -> None:
        return None


class VllmPolicySampler:
    """Samples with vLLM, in an engine of its own or on servers; every change of weights is probed."""

    def __init__(self, settings: Settings, run: str, workspace: Path) -> None:
        assert not isinstance(settings.sampling, TransformersSamplerSettings), "one of vLLM's kinds"
        self._settings = settings
        self._sampling = settings.sampling
        self._run = run
        self._workspace = workspace
        self._loop = EventLoopThread()
        self._statistics = SamplingStatistics()
        self._engine: VllmEngine | VllmServers | None = None
        self._probe: WeightProbe | None = None
        self._probed: ProbeResult | None = None
        self._loaded: PolicyWeights | None = None
        self._asleep = False

    def max_context_tokens(self, policy: LivePolicy) -> int:
        return min(self._sampling.max_model_len or policy.max_context_tokens, policy.max_context_tokens)

    def at(self, policy: LivePolicy, listener: RolloutListener | None = None) -> Sampler:
        ends = TurnEnds.of(policy.model, policy.tokenizer, open_protocol(self._settings.rollout).stops)
        if self._engine is None:
            self._engine = self._open(policy, ends)
        weights = policy.weights
        if weights != self._loaded:
            self._swap(self._engine, policy, weights)
        return OverlappingSampler(self._engine, self._loop, ends, self._statistics)

    def in_process(self, policy: LivePolicy) -> None:
        return None

    def release(self) -> SamplingReport | None:
        if engine_sleeps(self._settings):
            self._sleep()
        statistics, self._statistics = self._statistics, SamplingStatistics()
        if isinstance(self._engine, VllmServers):
            self._engine.statistics = self._statistics
        return report_of(self._sampling.kind, statistics, self._probed) if statistics.num_turns else None

    def close(self) -> None:
        try:
            if self._engine is not None:
                self._loop.run(self._engine.close())
        finally:
            self._loop.close()

    def _sleep(self) -> None:
        if isinstance(self._engine, VllmEngine) and not self._asleep:
            self._loop.run(self._engine.sleep())
            self._asleep = True
            self._loaded = None  # Its weights may be gone.

    def _swap(self, engine: VllmEngine | VllmServers, policy: LivePolicy, weights: PolicyWeights) -> None:
        self._loaded = None
        # Cached keys and values get their room last: while weights are loaded theirs is needed for the reading.
        if self._asleep and isinstance(engine, VllmEngine):
            free_cached()  # The trainer's, before the engine takes what it needs; ranks do so after their work.
            self._loop.run(engine.wake_up("weights"))
        self._loop.run(engine.load(weights))
        if self._asleep and isinstance(engine, VllmEngine):
            self._loop.run(engine.wake_up("kv_cache"))
            self._asleep = False
        if self._probe is None:
            longest = min(self.max_context_tokens(policy), self._settings.longest_conversation)
            num_tokens = num_trial_tokens(causal_lm(policy.model).config, longest)
            prompt = probe_prompt(policy.tokenizer, self._settings.rollout.temperature, longest, num_tokens)
            self._probe = WeightProbe(prompt, self._sampling.probe_tolerance)
        self._probed = self._probe.check(self._loop.run(engine.read(self._probe.prompt)), policy.read, weights)
        self._loaded = weights

    def _open(self, policy: LivePolicy, ends: TurnEnds) -> VllmEngine | VllmServers:
        if isinstance(self._sampling, VllmServerSamplerSettings):
            return VllmServers(self._server_options(self._sampling, policy, ends), self._statistics)
        return VllmEngine.open(self._engine_options(self._sampling, policy, ends), self._loop)

    def _engine_options(self, sampling: VllmSamplerSettings, policy: LivePolicy, ends: TurnEnds) -> EngineOptions:
        model = self._settings.model
        return EngineOptions(
            model=policy.base_folder,
            dtype=model.dtype if sampling.dtype == "model" else sampling.dtype,
            max_model_len=self.max_context_tokens(policy),
            max_num_seqs=sampling.max_num_seqs,
            gpu_memory_utilization=sampling.gpu_memory_utilization,
            kv_cache_bytes=int(sampling.kv_cache_gb * 2**30),
            tensor_parallel_size=sampling.tensor_parallel_size,
            data_parallel_size=sampling.data_parallel_size,
            enforce_eager=sampling.enforce_eager,
            enable_sleep_mode=engine_sleeps(self._settings),
            cards=engine_cards(self._settings),
            lora_rank=model.lora_rank if model.tuning == "lora" else 0,
            trust_remote_code=model.trust_remote_code,
            stops=tuple(ends.stops),
            end_ids=tuple(sorted(ends.end_ids)),
            num_threads=model.torch_threads,
        )

    def _server_options(self, sampling: VllmServerSamplerSettings, policy: LivePolicy, ends: TurnEnds) -> ServerOptions:
        return ServerOptions(
            run=self._run,
            urls=sampling.urls,
            api_key=os.environ.get(sampling.api_key_env, "") if sampling.api_key_env else "",
            timeout_s=sampling.timeout_s,
            max_num_seqs=sampling.max_num_seqs,
            max_model_len=self.max_context_tokens(policy),
            stops=tuple(ends.stops),
            end_ids=tuple(sorted(ends.end_ids)),
            adapters=self._settings.model.tuning == "lora",
            workspace_here=str(self._workspace),
            workspace_there=sampling.workspace_on_server,
        )


def report_of(kind: str, statistics: SamplingStatistics, probed: ProbeResult | None) -> SamplingReport:
    """Return what an engine did, as a record."""
    assert probed is not None, "nothing is sampled before the weights were probed"
    return SamplingReport(
        sampler=kind,
        num_turns=statistics.num_turns,
        num_sampled_tokens=statistics.num_sampled_tokens,
        num_prompt_tokens=statistics.num_prompt_tokens,
        num_cached_tokens=statistics.num_cached_tokens,
        num_resent_turns=statistics.num_resent_turns,
        seconds=statistics.seconds,
        tokens_per_s=statistics.tokens_per_s,
        cache_hit_share=statistics.cache_hit_share,
        mean_concurrency=statistics.mean_concurrency,
        retrieval_s=statistics.retrieval_s,
        stalled_s=statistics.stalled_s,
        probe_max_difference=probed.max_difference,
        probe_mean_difference=probed.mean_difference,
    )
