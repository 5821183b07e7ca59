"""Real vLLM servers: turns, adapters and full weights over HTTP, a run through one of them, one of two killed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import PreTrainedModel

from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain
from schemas.records.passage import SearchHit
from schemas.records.rollout import Group
from sdsearch.model.policy import load_model, load_tokenizer
from sdsearch.protocol.prompting import render_frame
from sdsearch.sampling.rollouts import RolloutLoop
from sdsearch.sampling.statistics import SamplingStatistics
from sdsearch.sampling.stopping import TurnEnds
from sdsearch.sampling.transformers_sampler import TransformersSampler
from sdsearch.sampling.vllm_client import ServerOptions
from sdsearch.sampling.vllm_server import VllmServers
from sdsearch.sampling.vllm_turns import EventLoopThread, OverlappingSampler, SamplerError
from sdsearch.sampling.vllm_weights import PolicyWeights, WeightProbe, probe_prompt, reader_of
from sdsearch.world import load_questions
from tests.support.fakes import FixedRetriever
from tests.vllm.conftest import BASE, MINI, TOLERANCE, rollout_loop
from tests.vllm.servers import ServerProcess, serve
from tests.vllm.test_engine import moved

MODEL, TOKENIZER = load_model(MINI, "float32"), load_tokenizer(MINI)
ENDS = TurnEnds.of(MODEL, TOKENIZER)


class TwoServers(NamedTuple):
    adapters: ServerProcess  # Takes LoRA adapters.
    full: ServerProcess  # Its own weights are reloaded.


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoServers]:
    folder = tmp_path_factory.mktemp("servers")
    untied().save_pretrained(folder / "untied")
    TOKENIZER.save_pretrained(folder / "untied")
    started = TwoServers(
        serve(MINI, folder, "--enable-lora", "--max-lora-rank", "16"), serve(folder / "untied", folder)
    )
    try:
        for server in started:
            server.wait_until_ready()
        yield started
    finally:
        for server in started:
            if server.process.poll() is None:
                server.kill()


def untied() -> PreTrainedModel:
    """The mini policy with an LM head of its own: a server on a CPU keeps a packed copy of a tied one."""
    model = load_model(MINI, "float32")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    return model


@pytest.fixture
def loop() -> Iterator[EventLoopThread]:
    thread = EventLoopThread()
    yield thread
    thread.close()


def client(
    *servers: ServerProcess, adapters: bool = True, timeout_s: float = 300.0
) -> tuple[VllmServers, SamplingStatistics]:
    statistics = SamplingStatistics()
    options = ServerOptions(
        run="tests",
        urls=tuple(server.url for server in servers),
        api_key="",
        timeout_s=timeout_s,
        max_num_seqs=64,
        max_model_len=512,
        end_ids=tuple(ENDS.end_ids),
        adapters=adapters,
        workspace_here="",
        workspace_there="",
    )
    return VllmServers(options, statistics), statistics


def roll_out(loop: RolloutLoop, temperature: float) -> list[Group]:
    return loop.roll_out(
        load_questions("dev")[:8], run_seed=3, iteration=1, policy_version=0, group_size=4, temperature=temperature
    )


def tokens_of(groups: Sequence[Group]) -> list[list[tuple[int, ...]]]:
    return [[rollout.token_ids for rollout in group.rollouts] for group in groups]


def test_greedy_rollouts_over_two_servers_are_those_of_transformers(servers: TwoServers, loop: EventLoopThread) -> None:
    engine, statistics = client(*servers)
    loop.run(engine.load(BASE))
    WeightProbe(probe_prompt(TOKENIZER, 1.0, 512), TOLERANCE).check(
        loop.run(engine.read(probe_prompt(TOKENIZER, 1.0, 512))), reader_of(MODEL), BASE
    )
    ours = roll_out(rollout_loop(OverlappingSampler(engine, loop, ENDS, statistics), TOKENIZER), 0.0)
    theirs = roll_out(rollout_loop(TransformersSampler(MODEL, TOKENIZER), TOKENIZER), 0.0)
    assert tokens_of(ours) == tokens_of(theirs)
    assert statistics.cache_hit_share >= 0


def test_full_weights_are_reloaded_over_http(servers: TwoServers, loop: EventLoopThread, tmp_path: Path) -> None:
    engine, _ = client(servers.full, adapters=False)
    probe = WeightProbe(probe_prompt(TOKENIZER, 0.7, 512), TOLERANCE)
    other = moved(untied(), tmp_path / "1", seed=1)
    weights = PolicyWeights(1, "full", str(tmp_path / "1"))
    loop.run(engine.load(BASE))
    with pytest.raises(SamplerError, match="does not sample from policy version 1"):
        probe.check(loop.run(engine.read(probe.prompt)), reader_of(other), weights)
    loop.run(engine.load(weights))
    result = probe.check(loop.run(engine.read(probe.prompt)), reader_of(other), weights)
    print(f"full weights over HTTP: largest difference {result.max_difference:.1e} nats")
    loop.run(engine.load(BASE))
    probe.check(loop.run(engine.read(probe.prompt)), reader_of(MODEL), BASE)


def test_a_run_with_adapters_through_a_server(servers: TwoServers, tmp_path: Path) -> None:
    settings = load_settings(
        "tiny",
        [
            "model.tuning=lora",
            "model.torch_threads=1",
            "sampling.kind=vllm_server",
            f"sampling.urls=['{servers.adapters.url}']",
            "sampling.max_model_len=512",
            "sampling.probe_tolerance=1e-4",
            "iterations=2",
            "data.questions_per_iteration=3",
            "evaluation.num_questions=4",
            "update.learning_rate=3e-3",
        ],
    )
    train_plain(settings, "adapters", tmp_path, SilentReporter())
    database = open_storage(tmp_path).database
    for row in database.query("SELECT * FROM v_updates").to_pylist():
        assert row["sampler_max_difference"] < 1e-4
    reports = database.query("SELECT * FROM v_sampling ORDER BY iteration, stage").to_pylist()
    assert [row["sampler"] for row in reports] == ["vllm_server"] * 4
    assert max(row["probe_max_difference"] for row in reports) < 1e-4
    print({name: round(v, 6) if isinstance(v, float) else v for name, v in reports[-1].items()})


class KillingRetriever(FixedRetriever):
    """Switches a server off when it is asked for the first time."""

    def __init__(self, victim: ServerProcess) -> None:
        super().__init__()
        self._victim = victim

    def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
        if self._victim.process.poll() is None:
            self._victim.kill()
        return super().search(queries, top_k)


def test_when_one_of_two_servers_is_killed_the_other_finishes_its_turns(
    servers: TwoServers, loop: EventLoopThread
) -> None:
    """The last test of this file: it uses the servers up."""
    engine, statistics = client(*servers)
    loop.run(engine.load(BASE))
    sampler = OverlappingSampler(engine, loop, ENDS, statistics)
    limits = rollout_loop(sampler, TOKENIZER).limits
    ours = roll_out(
        RolloutLoop(TOKENIZER, sampler, KillingRetriever(servers.full), limits, render_frame(TOKENIZER, "compact")), 1.0
    )
    assert statistics.num_resent_turns > 0
    alone, _ = client(servers.adapters)
    loop.run(alone.load(BASE))
    again = roll_out(rollout_loop(OverlappingSampler(alone, loop, ENDS, SamplingStatistics()), TOKENIZER), 1.0)
    assert tokens_of(ours) == tokens_of(again), "the same seeds, whichever server drew"
    for group, twin in zip(ours, again, strict=True):
        for rollout, other in zip(group.rollouts, twin.rollouts, strict=True):
            torch.testing.assert_close(
                torch.tensor(rollout.sampled_logprobs), torch.tensor(other.sampled_logprobs), rtol=0, atol=TOLERANCE
            )
    servers.adapters.kill()
    with pytest.raises(SamplerError, match=r"no vLLM server of sampling\.urls answers .*resume the run"):
        roll_out(rollout_loop(sampler, TOKENIZER), 1.0)
