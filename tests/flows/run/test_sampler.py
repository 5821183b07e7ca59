"""Which sampler a run uses, and the probe that refuses one whose weights are not the policy's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import flows.run.sampler
import sdsearch.sampling.vllm_engine
from flows.run.sampler import TransformersPolicySampler, VllmPolicySampler, open_sampler
from flows.settings.load import load_settings
from schemas.errors import UserError
from sdsearch.model.policy import trainable_parameters
from sdsearch.sampling.ports import TurnRequest
from sdsearch.sampling.vllm_engine import VllmEngine
from sdsearch.sampling.vllm_turns import EngineTurn, Prompt, SamplerError
from sdsearch.sampling.vllm_weights import (
    PolicyWeights,
    ProbeReading,
    Reader,
    WeightProbe,
    probe_prompt,
    read_by_trainer,
    reader_of,
    second_prompt,
)
from tests.support.builders import make_model, make_tokenizer

PROMPT = probe_prompt(make_tokenizer(), 0.8, 512)
WEIGHTS = PolicyWeights(1, "full", "/checkpoints/1")


def reading(model: torch.nn.Module, noise: float = 0.0, place: str = "the engine") -> ProbeReading:
    """What an engine with this model says of the probe."""
    text = read_by_trainer(model, PROMPT.token_ids[:1], PROMPT.token_ids[1:], 1.0)
    text[3] += noise
    turn = turn_after(model, PROMPT, (30, 31, 32))
    return ProbeReading(place, tuple(text.tolist()), turn, turn_after(model, second_prompt(PROMPT, turn), (40, 41)))


def turn_after(model: torch.nn.Module, prompt: Prompt, token_ids: tuple[int, ...]) -> EngineTurn:
    own = read_by_trainer(model, prompt.token_ids, token_ids, 0.8)
    return EngineTurn(token_ids, tuple(own.tolist()), 0, "length")


def moved(scale: float) -> torch.nn.Module:
    model = make_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def test_the_quickstart_samples_with_transformers(tmp_path: Path) -> None:
    assert isinstance(open_sampler(load_settings("quickstart"), "r", tmp_path), TransformersPolicySampler)


def test_the_paper_settings_name_vllm_and_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings("paper_3b")
    assert settings.sampling.kind == "vllm"
    monkeypatch.setattr(sdsearch.sampling.vllm_engine, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[vllm\]'.*make vllm-install"):
        open_sampler(settings, "r", tmp_path)


def test_a_key_that_is_not_in_the_environment_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    settings = load_settings(
        "tiny", ["sampling.kind=vllm_server", "sampling.urls=['http://one:1']", "sampling.api_key_env=SOME_KEY"]
    )
    with pytest.raises(UserError, match="SOME_KEY, which is not set"):
        open_sampler(settings, "r", tmp_path)


def test_the_probe_passes_the_policys_own_weights() -> None:
    model = make_model()
    result = WeightProbe(PROMPT, 1e-4).check([reading(model), reading(model, 5e-5)], reader_of(model), WEIGHTS)
    assert 4e-5 < result.max_difference < 6e-5


def test_the_probe_refuses_other_weights_and_names_the_engine() -> None:
    model = make_model()
    readings = [reading(model), reading(moved(0.01), place="the server http://two")]
    with pytest.raises(SamplerError, match=r"server http://two does not sample from policy version 1 .*Nothing was"):
        WeightProbe(PROMPT, 1e-3).check(readings, reader_of(model), WEIGHTS)


def test_one_token_that_differs_is_enough() -> None:
    with pytest.raises(SamplerError, match=r"up to 0\.01 nats"):
        WeightProbe(PROMPT, 1e-3).check([reading(make_model(), 0.01)], reader_of(make_model()), WEIGHTS)


def test_the_sampled_turn_is_compared_at_its_temperature() -> None:
    model = make_model()
    told = reading(model)
    at_one = read_by_trainer(model, PROMPT.token_ids, told.turn.token_ids, 1.0)
    wrong = replace(told, turn=EngineTurn((30, 31, 32), tuple(at_one.tolist()), 0, "length"))
    with pytest.raises(SamplerError, match="does not sample"):
        WeightProbe(PROMPT, 1e-3).check([wrong], reader_of(model), WEIGHTS)


def test_a_second_turn_from_other_tokens_is_refused() -> None:
    """As from a prefix cache that holds another conversation's past."""
    model = make_model()
    elsewhere = replace(PROMPT, token_ids=PROMPT.token_ids[1:])
    wrong = replace(reading(model), second=turn_after(model, elsewhere, (40, 41)))
    with pytest.raises(SamplerError, match="does not sample"):
        WeightProbe(PROMPT, 1e-3).check([wrong], reader_of(model), WEIGHTS)


def test_the_probe_is_as_long_as_windows_need_and_leaves_room_for_two_turns() -> None:
    assert len(probe_prompt(make_tokenizer(), 1.0, 4096, 900).token_ids) >= 900
    prompt = probe_prompt(make_tokenizer(), 1.0, 128, 900)
    turn = EngineTurn((5,) * prompt.request.max_new_tokens, (), 0, "length")
    second = second_prompt(prompt, turn)
    assert len(second.token_ids) + second.request.max_new_tokens == 128
    assert second.token_ids[: len(prompt.token_ids)] == prompt.token_ids


def test_missing_logprobs_do_not_pass() -> None:
    told = reading(make_model())
    silent = replace(told, text_logprobs=(None, *told.text_logprobs[1:]))
    with pytest.raises(SamplerError, match="up to inf nats"):
        WeightProbe(PROMPT, 1e-3).check([silent], reader_of(make_model()), WEIGHTS)


def test_a_stale_engine_is_refused_within_a_wide_tolerance_too() -> None:
    """A tolerance that allows for bfloat16 would let a small update through that never reached the engine."""
    former, current = make_model(), moved(1e-3)
    probe = WeightProbe(PROMPT, 0.5)
    probe.check([reading(former, 1e-4)], reader_of(former), PolicyWeights(0, "base", "/base"))
    with pytest.raises(SamplerError, match="as the version before did"):
        probe.check([reading(former, 1e-4)], reader_of(current), WEIGHTS)
    probe = WeightProbe(PROMPT, 0.5)
    probe.check([reading(former, 1e-4)], reader_of(former), PolicyWeights(0, "base", "/base"))
    assert probe.check([reading(current, 1e-4)], reader_of(current), WEIGHTS).max_difference < 0.5


class FakeEngine(VllmEngine):
    """Runs the models it is given by version; says the same turn every time."""

    def __init__(self, models: dict[int, torch.nn.Module]) -> None:
        self.models = models
        self.now = models[0]
        self.calls: list[str] = []

    async def load(self, weights: PolicyWeights) -> None:
        self.calls.append(f"load {weights.version}")
        self.now = self.models[weights.version]

    async def read(self, prompt: Prompt) -> list[ProbeReading]:
        self.calls.append("read")
        return [reading(self.now)]

    async def generate(self, prompt: Prompt) -> EngineTurn:
        turn = tuple(make_tokenizer().encode("<answer> tree </answer>", add_special_tokens=False))
        return EngineTurn(turn, (-1.0,) * len(turn), 4, "</answer>")

    async def sleep(self) -> None:
        self.calls.append("sleep")

    async def wake_up(self, part: str) -> None:
        self.calls.append(f"wake {part}")

    async def close(self) -> None:
        self.calls.append("close")


class FakePolicy:
    """What a sampler reads of the live policy."""

    tokenizer = make_tokenizer()
    max_context_tokens = 512
    base_folder = "/base"

    def __init__(self, version: int, model: torch.nn.Module) -> None:
        self.model = model
        self.weights = PolicyWeights(version, "full" if version else "base", f"/checkpoints/{version}")
        self.read: Reader = reader_of(model)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine({0: make_model(), 1: moved(0.01), 2: moved(0.02)})
    monkeypatch.setattr(flows.run.sampler, "check_installed", lambda: None)
    monkeypatch.setattr(flows.run.sampler.VllmEngine, "open", staticmethod(lambda options, loop: fake))
    monkeypatch.setattr(flows.run.sampler, "engine_cards", lambda settings: ())
    return fake


def opened(tmp_path: Path, *overrides: str) -> VllmPolicySampler:
    settings = load_settings("tiny", ["sampling.kind=vllm", "rollout.temperature=0.8", *overrides])
    sampler = open_sampler(settings, "r", tmp_path)
    assert isinstance(sampler, VllmPolicySampler)
    return sampler


def say_something(sampler: VllmPolicySampler, policy: FakePolicy) -> None:
    sampler.at(policy).converse([TurnRequest("q/0", (5, 6, 7), 1, 40, 1.0)], lambda turns: [])


def test_weights_are_loaded_and_probed_when_they_change_and_only_then(engine: FakeEngine, tmp_path: Path) -> None:
    sampler = opened(tmp_path)
    for version in (0, 0, 1, 1, 2):
        say_something(sampler, FakePolicy(version, engine.models[version]))
    sampler.close()
    assert engine.calls == ["load 0", "read", "load 1", "read", "load 2", "read", "close"]


def test_after_a_refusal_the_weights_are_loaded_again(engine: FakeEngine, tmp_path: Path) -> None:
    sampler = opened(tmp_path)
    policy = FakePolicy(1, engine.models[1])
    engine.models[1] = engine.models[2]
    with pytest.raises(SamplerError, match="does not sample from policy version 1"):
        sampler.at(policy)
    engine.models[1] = policy.model
    say_something(sampler, policy)
    sampler.close()
    assert engine.calls == ["load 1", "read", "load 1", "read", "close"]


def test_an_engine_sleeps_between_stages_where_the_settings_say_so(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And takes nothing before the trainer has let go of what it had."""
    monkeypatch.setattr(flows.run.sampler, "free_cached", lambda: engine.calls.append("free"))
    sampler = opened(tmp_path, "sampling.sleep_while_training=true")
    policy = FakePolicy(0, engine.models[0])
    assert sampler.release() is None, "there is no engine yet"
    for _ in range(2):
        say_something(sampler, policy)
        sampler.release()
        sampler.release()
    sampler.close()
    awake = ["free", "wake weights", "load 0", "wake kv_cache", "read"]
    assert engine.calls == ["load 0", "read", "sleep", *awake, "sleep", "close"]


def test_an_engine_with_cards_of_its_own_never_sleeps(engine: FakeEngine, tmp_path: Path) -> None:
    apart = ("model.device=cuda:0", "sampling.devices=[1]")
    sampler = opened(tmp_path, "sampling.sleep_while_training=true", *apart)
    policy = FakePolicy(0, engine.models[0])
    for _ in range(2):
        say_something(sampler, policy)
        sampler.release()
    sampler.close()
    assert engine.calls == ["load 0", "read", "close"]


def test_a_stages_report(engine: FakeEngine, tmp_path: Path) -> None:
    sampler = opened(tmp_path)
    policy = FakePolicy(0, engine.models[0])
    for _ in range(2):
        say_something(sampler, policy)
    report = sampler.release()
    assert report is not None
    assert (report.sampler, report.num_turns, report.num_prompt_tokens, report.num_cached_tokens) == ("vllm", 2, 6, 8)
    assert report.probe_max_difference < 1e-5
    assert sampler.release() is None, "nothing was sampled since"
    sampler.close()
