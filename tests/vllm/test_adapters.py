"""A real engine with LoRA adapters, and turns that end inside a token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from sdsearch.model.policy import load_model, with_lora
from sdsearch.sampling.ports import SampledTurn, TurnRequest
from sdsearch.sampling.vllm_turns import SamplerError
from sdsearch.sampling.vllm_weights import PolicyWeights
from tests.property.test_query_tokens import byte_level_bpe
from tests.vllm.conftest import Bench, start

PROMPT = "a river"
RANK = 4


def straddling_turn() -> list[int]:
    """A search whose last token goes on after the closing tag."""
    tokenizer = byte_level_bpe()
    last = next(i for token, i in sorted(tokenizer.get_vocab().items()) if token.startswith("</search>Ċ"))
    return [*tokenizer.encode("<search>quiet", add_special_tokens=False), last]


def taught(folder: Path) -> Path:
    """A small model over that tokenizer which goes on from the prompt with the straddling turn, and then on and on."""
    tokenizer = byte_level_bpe()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    prompt = tokenizer.encode(PROMPT, add_special_tokens=False)
    ids = torch.tensor([[*prompt, *straddling_turn() * 3]])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = start(taught(tmp_path_factory.mktemp("models") / "taught"), RANK)
    yield bench
    bench.loop.run(bench.engine.close())
    bench.loop.close()


def adapter(bench: Bench, folder: Path, version: int) -> tuple[PeftModel, PolicyWeights]:
    """An adapter as the update leaves it: both of its matrices other than at the start."""
    model = with_lora(load_model(bench.folder, "float32"), RANK, 8.0, "all-linear", seed=version)
    generator = torch.Generator().manual_seed(version)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder / str(version))
    return model, PolicyWeights(version, "adapter", str(folder / str(version)))


def test_an_adapter_is_sampled_from_and_the_former_one_is_dropped(bench: Bench, tmp_path: Path) -> None:
    base = PolicyWeights(0, "base", str(bench.folder))
    bench.probe(base, bench.model)
    present = []
    for version in (1, 2):
        model, weights = adapter(bench, tmp_path, version)
        result = bench.probe(weights, model)
        print(f"adapter {version}: largest difference {result.max_difference:.1e} nats")
        with pytest.raises(SamplerError):
            bench.probe(base, bench.model, load=False)
        present.append(bench.loop.run(bench.engine._engine.list_loras()))
    assert [len(adapters) for adapters in present] == [1, 1]
    assert present[0] != present[1], "each version has a number of its own"
    bench.probe(base, bench.model)
    assert not bench.loop.run(bench.engine._engine.list_loras())


def test_a_stale_adapter_is_noticed(bench: Bench, tmp_path: Path) -> None:
    first, weights = adapter(bench, tmp_path, 1)
    bench.probe(weights, first)
    second, weights = adapter(bench, tmp_path, 2)
    with pytest.raises(SamplerError, match="does not sample from policy version 2"):
        bench.probe(weights, second, load=False)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_that_goes_on_after_the_closing_tag_is_kept_as_sampled(bench: Bench, temperature: float) -> None:
    bench.probe(PolicyWeights(0, "base", str(bench.folder)), bench.model)
    prompt = tuple(bench.tokenizer.encode(PROMPT, add_special_tokens=False))
    turns: list[SampledTurn] = []
    requests = [TurnRequest(f"q/{seed}", prompt, seed, 40, temperature) for seed in range(4)]
    bench.sampler().converse(requests, lambda batch: turns.extend(batch) or [])
    expected = tuple(straddling_turn())
    straddling = [turn for turn in turns if turn.token_ids[-1] == expected[-1]]
    assert straddling
    assert temperature or {turn.token_ids for turn in turns} == {expected}
    for turn in straddling:
        assert turn.stop_reason == "search_closed"
        assert not bench.tokenizer.decode(turn.token_ids).endswith("</search>"), "the token goes on"


def test_the_token_limit(bench: Bench) -> None:
    prompt = tuple(bench.tokenizer.encode(PROMPT, add_special_tokens=False))
    turns: list[SampledTurn] = []
    bench.sampler().converse([TurnRequest("q/0", prompt, 0, 1, 0.0)], lambda batch: turns.extend(batch) or [])
    assert [(turn.token_ids, turn.stop_reason) for turn in turns] == [(tuple(straddling_turn()[:1]), "length")]


def test_an_engine_that_died_is_told_in_a_sentence(bench: Bench) -> None:
    """The last test of this file: it uses the engine up."""
    workers = [child for child in psutil.Process().children(recursive=True) if "VLLM" in " ".join(child.cmdline())]
    assert workers
    for worker in workers:
        worker.kill()
    prompt = tuple(bench.tokenizer.encode(PROMPT, add_special_tokens=False))
    with pytest.raises(SamplerError, match=r"the vLLM engine died .*resume the run"):
        bench.sampler().converse([TurnRequest("q/0", prompt, 0, 40, 0.0)], lambda batch: [])
