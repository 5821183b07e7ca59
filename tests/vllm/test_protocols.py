"""Each protocol rolls out through a real engine: one engine, a mini policy whose template has tools."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from schemas.records.rollout import Search
from schemas.settings.root import RolloutSettings
from sdsearch.model.policy import load_model, load_tokenizer
from sdsearch.protocol.ports import open_protocol
from sdsearch.protocol.prompting import render_frame
from sdsearch.protocol.tokens import decode
from sdsearch.sampling.rollouts import RolloutLimits, RolloutLoop
from sdsearch.sampling.vllm_weights import PolicyWeights
from sdsearch.world import load_questions
from sdsearch.world.tool_calls import MAX_NEW_TOKENS, give_template, train_tool_calls
from tests.support.fakes import FixedRetriever
from tests.vllm.conftest import MINI, TOLERANCE, Bench, overlapping, start
from tests.vllm.test_engine import largest_difference

LIMITS = RolloutLimits(2, MAX_NEW_TOKENS, 256, 160, 1024, 2)
NUM_STEPS = 100
"""Of training in tool calls: enough that some of them are well-formed."""


@dataclass(frozen=True)
class Trained:
    """A policy as the engine loads it, and as the trainer holds it."""

    weights: PolicyWeights
    model: PreTrainedModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini policy with room for the template's marks; it writes tags as before, and none of the marks."""
    folder = tmp_path_factory.mktemp("template")
    model, tokenizer = load_model(MINI, "float32"), load_tokenizer(MINI)
    num_own = len(tokenizer)
    give_template(model, tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[num_own:] = 0.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def caller(folder: Path) -> Iterator[Bench]:
    """The one engine."""
    bench = start(folder, lora_rank=0, max_model_len=LIMITS.max_context_tokens)
    yield bench
    bench.loop.run(bench.engine.close())
    bench.loop.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The policy after some training in tool calls."""
    model, tokenizer, saved = load_model(MINI, "float32"), load_tokenizer(MINI), tmp_path_factory.mktemp("trained")
    give_template(model, tokenizer)
    train_tool_calls(model, tokenizer, 0, lambda progress: None, NUM_STEPS)
    model.save_pretrained(saved)
    return Trained(PolicyWeights(1, "full", str(saved)), model)


def check(caller: Bench, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Roll out in a protocol and see that the engine read what the trainer reads, with searches at their places."""
    own = open_protocol(RolloutSettings(protocol=name))
    caller.engine._options = replace(caller.engine._options, stops=tuple(own.stops))  # A run's engine has its own.
    sampler = overlapping(caller.engine, caller.loop, model, tokenizer, own)
    frame = render_frame(tokenizer, "compact", own)
    groups = RolloutLoop(tokenizer, sampler, FixedRetriever(), LIMITS, frame, own).roll_out(
        load_questions("dev")[:2], run_seed=3, iteration=1, policy_version=0, group_size=2, temperature=1.0
    )
    difference, num_tokens = largest_difference(model, groups, 1.0)
    turns = [turn for group in groups for rollout in group.rollouts for turn in rollout.turns]
    searches = [turn for turn in turns if isinstance(turn.action, Search)]
    print(f"{name}: {num_tokens} tokens, {len(turns)} turns, {len(searches)} searches, difference {difference:.1e}")
    assert difference < TOLERANCE
    assert any(turn.observation for turn in searches)
    for turn in searches:
        text = turn.generation.text
        inside = decode(tokenizer, [turn.generation.token_ids[place] for place in turn.generation.query_positions])
        assert inside.strip()
        assert inside.strip() in text[slice(*own.query_span(text))]
        assert turn.generation.stop_reason == own.stops.get("</search>", "end_of_turn")
        if turn.observation is not None:
            opening, closing, _ = own.reply_frame(tokenizer, "documents", turn.generation.token_ids[-1])
            assert turn.observation.text.startswith(opening)
            assert turn.observation.text.endswith(closing)


@pytest.mark.parametrize("name", ["tags", "search_r1", "autorefine"])
def test_a_protocol_with_tags_rolls_out(caller: Bench, folder: Path, name: str) -> None:
    caller.loop.run(caller.engine.load(PolicyWeights(0, "base", str(folder))))
    # The same ids without a template: it would put words around the question that these weights have never seen.
    check(caller, caller.model, load_tokenizer(MINI), name)


def test_tool_calls_roll_out(caller: Bench, trained: Trained) -> None:
    caller.loop.run(caller.engine.load(trained.weights))
    check(caller, trained.model, caller.tokenizer, "tool_call")
