"""A real engine with two data-parallel ranks: each is probed, groups stay on one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sdsearch.sampling.homes import Homes
from sdsearch.sampling.transformers_sampler import TransformersSampler
from sdsearch.sampling.vllm_turns import SamplerError
from sdsearch.sampling.vllm_weights import PolicyWeights
from tests.vllm.conftest import BASE, MINI, Bench, start
from tests.vllm.test_engine import moved, roll_out


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[Bench]:
    bench = start(MINI, lora_rank=0, data_parallel_size=2)
    yield bench
    bench.loop.run(bench.engine.close())
    bench.loop.close()


@pytest.fixture
def bench(two_ranks: Bench) -> Bench:
    two_ranks.loop.run(two_ranks.engine.load(BASE))
    return two_ranks


class Balanced(Homes[int]):
    """Sends turn after turn to the next rank, as a balancer by load does with turns of equal length."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = 0

    def of(self, group: str, up: Sequence[int]) -> int:
        self._turn += 1
        return up[self._turn % len(up)]


def test_both_ranks_sample_from_the_swapped_weights(bench: Bench, tmp_path: Path) -> None:
    model = moved(bench.model, tmp_path / "1", seed=1)
    result = bench.probe(PolicyWeights(1, "full", str(tmp_path / "1")), model)
    print(f"two ranks: largest difference {result.max_difference:.1e} nats")


@pytest.mark.parametrize("stale", [0, 1])
def test_a_swap_that_is_withheld_from_one_rank_is_noticed(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: int
) -> None:
    model = moved(bench.model, tmp_path / "1", seed=1)
    core = bench.engine._engine.engine_core

    async def swap_others(method: str, timeout: object = None, args: tuple = (), kwargs: object = None) -> None:
        fresh = core.core_engines[1 - stale]
        await core._call_utility_async("collective_rpc", method, timeout, args, kwargs, engine=fresh)

    monkeypatch.setattr(bench.engine._engine, "collective_rpc", swap_others)
    with pytest.raises(SamplerError, match=f"data-parallel rank {stale} of the vLLM engine does not sample from poli"):
        bench.probe(PolicyWeights(1, "full", str(tmp_path / "1")), model)


def test_greedy_rollouts_are_those_of_transformers(bench: Bench) -> None:
    ours = roll_out(bench, 0.0, num_questions=12)
    theirs = roll_out(bench, 0.0, num_questions=12, sampler=TransformersSampler(bench.model, bench.tokenizer))
    assert [[r.token_ids for r in group.rollouts] for group in ours] == [
        [r.token_ids for r in group.rollouts] for group in theirs
    ]


def test_more_prompt_tokens_are_cached_where_groups_stay_on_a_rank(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = bench.sampler()
    roll_out(bench, 1.0, num_questions=16, sampler=pinned)
    bench.loop.run(bench.engine.load(BASE))
    monkeypatch.setattr(bench.engine, "_homes", Balanced())
    spread = bench.sampler()
    roll_out(bench, 1.0, num_questions=16, sampler=spread)
    shares = pinned._statistics.cache_hit_share, spread._statistics.cache_hit_share
    print(f"prefix cache: {shares[0]:.2f} of prompt tokens with groups on a rank, {shares[1]:.2f} with turns spread")
    assert shares[0] > shares[1] + 0.03
