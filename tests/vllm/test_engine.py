"""A real engine and the mini policy: log-probabilities, seeds, greedy rollouts, full weights changed in place."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from schemas.records.rollout import Group
from sdsearch.model.policy import trainable_parameters
from sdsearch.sampling.transformers_sampler import TransformersSampler
from sdsearch.sampling.vllm_turns import SamplerError
from sdsearch.sampling.vllm_weights import PolicyWeights, read_by_trainer
from sdsearch.world import load_questions
from storage.disk.tensors import save_tensors
from tests.vllm.conftest import BASE, TOLERANCE, Bench, rollout_loop


def roll_out(bench: Bench, temperature: float, num_questions: int = 6, sampler: object = None) -> list[Group]:
    return rollout_loop(sampler or bench.sampler(), bench.tokenizer).roll_out(
        load_questions("dev")[:num_questions],
        run_seed=3,
        iteration=1,
        policy_version=0,
        group_size=4,
        temperature=temperature,
    )


def moved(model: PreTrainedModel, folder: Path, seed: int) -> PreTrainedModel:
    """A copy with other weights, saved as a checkpoint is: the optimiser in a folder beside them."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(other).values():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    other.save_pretrained(folder)
    save_tensors(folder / "optimiser" / "state.safetensors", {"exp_avg.x": torch.zeros(3)})
    return other


def largest_difference(model: PreTrainedModel, groups: list[Group], temperature: float) -> tuple[float, int]:
    differences = []
    for group in groups:
        for rollout in group.rollouts:
            own = read_by_trainer(model, group.prompt_token_ids, rollout.token_ids, temperature)
            told = torch.tensor(rollout.sampled_logprobs)
            differences.append((own[list(rollout.completion_positions)] - told).abs())
    return float(torch.cat(differences).max()), len(torch.cat(differences))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_are_the_trainers(bench: Bench, temperature: float) -> None:
    groups = roll_out(bench, temperature)
    difference, num_tokens = largest_difference(bench.model, groups, temperature)
    assert num_tokens > 500
    assert difference < TOLERANCE
    print(f"temperature {temperature}: largest difference {difference:.1e} nats over {num_tokens} sampled tokens")


def test_the_same_seeds_draw_the_same_rollouts_and_siblings_differ(bench: Bench) -> None:
    first, again = roll_out(bench, 1.0), roll_out(bench, 1.0)
    tokens = [[rollout.token_ids for rollout in group.rollouts] for group in first]
    assert tokens == [[rollout.token_ids for rollout in group.rollouts] for group in again]
    assert any(len(set(siblings)) > 1 for siblings in tokens)


def test_greedy_rollouts_are_those_of_transformers(bench: Bench) -> None:
    ours = roll_out(bench, 0.0, num_questions=12)
    theirs = roll_out(bench, 0.0, num_questions=12, sampler=TransformersSampler(bench.model, bench.tokenizer))
    assert [[r.token_ids for r in group.rollouts] for group in ours] == [
        [r.token_ids for r in group.rollouts] for group in theirs
    ]
    turns = [turn for group in ours for rollout in group.rollouts for turn in rollout.turns]
    assert {"search_closed", "answer_closed"} <= {turn.generation.stop_reason for turn in turns}


def test_a_shared_prompt_and_a_rollouts_history_are_not_computed_again(bench: Bench) -> None:
    sampler = bench.sampler()
    roll_out(bench, 1.0, sampler=sampler)
    statistics = sampler._statistics
    assert statistics.num_turns > 24
    assert 0 < statistics.mean_concurrency <= 24
    assert statistics.cache_hit_share > 0.2
    print(f"prefix cache: {statistics.cache_hit_share:.0%} of {statistics.num_prompt_tokens} prompt tokens")


def test_full_weights_are_changed_in_place(bench: Bench, tmp_path: Path) -> None:
    base = bench.probe(BASE, bench.model)
    for version in (1, 2):
        model = moved(bench.model, tmp_path / str(version), seed=version)
        weights = PolicyWeights(version, "full", str(tmp_path / str(version)))
        result = bench.probe(weights, model)
        print(f"version {version}: largest difference {result.max_difference:.1e} nats")
        groups = roll_out(bench, 1.0, num_questions=3)
        assert largest_difference(model, groups, 1.0)[0] < TOLERANCE, "nothing of former weights is in the cache"
        assert largest_difference(bench.model, groups, 1.0)[0] > 100 * TOLERANCE
    assert bench.probe(BASE, bench.model).max_difference == pytest.approx(base.max_difference, abs=1e-6)


def test_weights_that_did_not_arrive_are_noticed(bench: Bench, tmp_path: Path) -> None:
    model = moved(bench.model, tmp_path / "1", seed=1)
    with pytest.raises(SamplerError, match="does not sample from policy version 1"):
        bench.probe(PolicyWeights(1, "full", str(tmp_path / "1")), model, load=False)


def test_prefixes_that_former_weights_computed_are_noticed(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def keep() -> bool:
        return True

    bench.probe(BASE, bench.model)
    model = moved(bench.model, tmp_path / "1", seed=1)
    with monkeypatch.context() as patched:
        patched.setattr(bench.engine._engine, "reset_prefix_cache", keep)
        with pytest.raises(SamplerError, match="does not sample from policy version 1"):
            bench.probe(PolicyWeights(1, "full", str(tmp_path / "1")), model)
    assert bench.probe(PolicyWeights(1, "full", str(tmp_path / "1")), model).max_difference < TOLERANCE
