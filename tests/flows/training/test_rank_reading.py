"""Two ranks hold the weights, an engine samples: the run's own process has neither, and the probe asks the ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import flows.run.sampler
from flows.run.live import Runtime
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain
from flows.training.ranks.trainer import RankedTrainer
from sdsearch.model.policy import load_model, load_tokenizer
from sdsearch.sampling.vllm_engine import EngineOptions, VllmEngine
from sdsearch.sampling.vllm_turns import EngineTurn, EventLoopThread, Prompt, SamplerError
from sdsearch.sampling.vllm_weights import (
    PolicyWeights,
    ProbeReading,
    passage,
    read_by_trainer,
    read_replica,
    reader_of,
)
from storage.storage import Storage
from storage.workspace import Workspace

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]
OVERRIDES = [
    "distributed.ranks=2",
    "distributed.timeout_s=300",
    "sampling.kind=vllm",
    "sampling.probe_tolerance=1e-4",
    "rollout.max_new_tokens=8",
    "reward.name=tests.support.plugging:brevity",
    "iterations=2",
    "data.questions_per_iteration=2",
    "evaluation.num_questions=2",
    "model.torch_threads=1",
]
SETTINGS = load_settings("tiny", OVERRIDES)


class OneEngine(VllmEngine):
    """An engine of one replica over transformers: turns of one word, which end sooner or later by their seed."""

    def __init__(self, options: EngineOptions) -> None:
        self.loaded: list[int] = []
        self.withheld = False
        tokenizer = load_tokenizer(options.model)
        self._word = tokenizer.encode("tea", add_special_tokens=False)[0]
        self._end = options.end_ids[0]
        self._model = load_model(options.model, "float32")

    async def load(self, weights: PolicyWeights) -> None:
        self.loaded.append(weights.version)
        if not self.withheld:
            self._model = load_model(weights.folder, "float32")

    async def read(self, prompt: Prompt) -> list[ProbeReading]:
        async def text() -> list[float]:
            return read_by_trainer(self._model, prompt.token_ids[:1], prompt.token_ids[1:], 1.0).tolist()

        return [await read_replica("the engine", prompt, self.generate, text)]

    async def generate(self, prompt: Prompt) -> EngineTurn:
        token_ids = (*[self._word] * (prompt.request.seed % 5), self._end)
        logprobs = read_by_trainer(self._model, prompt.token_ids, token_ids, prompt.request.temperature or 1.0)
        return EngineTurn(token_ids, tuple(logprobs.tolist()), 0, "stop")

    async def close(self) -> None:
        """There is nothing to end."""


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[OneEngine]:
    """The engines that runs open."""
    opened: list[OneEngine] = []

    def open_engine(options: EngineOptions, loop: EventLoopThread) -> OneEngine:
        opened.append(OneEngine(options))
        return opened[-1]

    monkeypatch.setattr(flows.run.sampler, "check_installed", lambda: None)
    monkeypatch.setattr(flows.run.sampler.VllmEngine, "open", staticmethod(open_engine))
    return opened


def test_the_ranks_read_the_probe_and_the_runs_process_holds_no_weights(
    engines: list[OneEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []
    swap = flows.run.sampler.VllmPolicySampler._swap

    def watched(self: object, engine: object, policy: object, weights: object) -> None:
        held.append(not all(weight.is_meta for weight in policy.model.parameters()))
        swap(self, engine, policy, weights)

    monkeypatch.setattr(flows.run.sampler.VllmPolicySampler, "_swap", watched)
    train_plain(SETTINGS, "read", tmp_path, SilentReporter())
    assert engines[0].loaded == [0, 1, 2]
    assert held == [False] * 3
    storage = open_storage(tmp_path)
    reports = storage.database.query("SELECT probe_max_difference FROM v_sampling").to_pylist()
    assert len(reports) == 4
    assert max(row["probe_max_difference"] for row in reports) < 1e-4
    folders = [storage.checkpoints.path("read", version) for version in (1, 2)]
    texts = [read_by_trainer(load_model(folder, "float32"), (1,), (5, 6, 7), 1.0) for folder in folders]
    assert not torch.equal(*texts), "the weights that were probed changed"


def test_a_swap_that_is_withheld_is_noticed_by_what_the_ranks_read(
    engines: list[OneEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = OneEngine.load

    async def withhold(self: OneEngine, weights: PolicyWeights) -> None:
        self.withheld = weights.version > 0
        await load(self, weights)

    monkeypatch.setattr(OneEngine, "load", withhold)
    with pytest.raises(SamplerError, match="does not sample from policy version 1"):
        train_plain(SETTINGS, "stale", tmp_path, SilentReporter())


def test_ranks_read_what_one_process_reads(tmp_path: Path) -> None:
    """Also at a temperature, and in a second request, which the first must leave the shards ready for."""
    live = Runtime(SETTINGS, "r", Storage(Workspace.open(tmp_path)), SilentReporter())
    live.policy.move_to(0)
    plain = reader_of(load_model(live.policy.base_folder, "float32"))
    asked = [passage((1, 2, 3), (5, 6, 7, 8), 1.0), passage((9,), (4, 5), 0.6)]
    trainer = RankedTrainer(live)
    try:
        for _ in range(2):
            for own, expected in zip(live.policy.read(asked), plain(asked), strict=True):
                torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
    finally:
        trainer.close()
        live.close()
