"""Small real parts for tests: tokenizers, randomly initialised models, rollouts drawn token by token."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from schemas.records.question import Question
from schemas.records.rollout import Group, Rollout
from sdsearch.protocol.prompting import render_frame
from sdsearch.sampling.rollouts import RolloutLimits, RolloutLoop
from tests.support.fakes import FixedRetriever, ScriptedSampler

_TAGS = [f"<{slash}{name}>" for name in ("think", "search", "documents", "answer") for slash in ("", "/")]
_SENTENCES = [
    "Question: What is the capital of Andorra? The capital of Andorra is Andorra la Vella.",
    "Earlier attempts at this question. They inform the next search, not the answer.",
    "Attempt 1 (CORRECT): capital of Andorra | Attempt 2 (INCORRECT): no search",
    "Doc 1(Title: Andorra) Andorra is a state of Europe <search> river </search> <answer> tree </answer>",
    "No documents found. No search or answer was found.",
]
ModelKind = Literal["llama", "qwen2", "qwen3", "mistral"]
_KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    "mistral": (MistralForCausalLM, MistralConfig),  # its tokens see so many before them as its sliding window holds
}


@cache
def make_tokenizer(
    tags: Literal["special", "text"] = "special", pad: Literal["own", "eos"] = "own"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE; protocol tags are single special tokens (as the mini policy's) or plain text (as Qwen's).

    pad: a token of its own, or the end of turn, whose id is then 0, the number that fills padded rows.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = [*(["<pad>"] if pad == "own" else []), "<|end|>", *(_TAGS if tags == "special" else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(_SENTENCES * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>" if pad == "own" else "<|end|>",
        eos_token="<|end|>",
        additional_special_tokens=_TAGS if tags == "special" else [],
    )


def make_model(
    kind: ModelKind = "llama", seed: int = 0, vocab_size: int | None = None, head_width: int = 8
) -> PreTrainedModel:
    """A two-layer model of four heads with random weights, float32, large enough logits to make choices differ."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": vocab_size or len(make_tokenizer()),
        "hidden_size": 4 * head_width,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "initializer_range": 0.3,
    }
    own = {"qwen3": {"head_dim": head_width}, "mistral": {"sliding_window": 20}}.get(kind, {})
    model, config = _KINDS[kind]
    return model(config(**sizes, **own)).eval()


def make_question(number: int = 0, golden: tuple[str, ...] = ("Andorra la Vella",)) -> Question:
    return Question(
        id=f"q{number}",
        dataset="test",
        split="train",
        question=f"What is the capital of Andorra{'?' * (number + 1)}",
        golden_answers=golden,
    )


ROLLOUT_TEXTS = (
    ("<think> a </think><search> capital of Andorra </search>", "<answer> Andorra la Vella </answer>"),
    ("<search> river </search>", "<search> tree | capital </search>", "<answer> tree </answer>"),
    ("<answer> Andorra </answer>",),
    ("<search>  </search>", "state of Europe<|end|>", "<search> Europe", "<search> late </search>"),
    ("<search> nothing </search>", "<answer> the Andorra la Vella </answer>"),
)


def make_groups(
    tokenizer: PreTrainedTokenizerFast,
    num_groups: int = 2,
    texts: Sequence[Sequence[str]] = ROLLOUT_TEXTS,
    seed: int = 0,
    max_context_tokens: int = 512,
) -> list[Group]:
    """Groups whose rollouts say `texts` (ragged, several searches, none, malformed, cut off), with drawn log-probs."""

    def script(key: str, turn: int) -> tuple[list[int], str]:
        text = texts[int(key.rsplit("/", 1)[1])][turn]
        ends = {"</search>": "search_closed", "</answer>": "answer_closed", "<|end|>": "end_of_turn"}
        reason = next((reason for end, reason in ends.items() if text.endswith(end)), "length")
        return tokenizer.encode(text, add_special_tokens=False), reason

    limits = RolloutLimits(3, 64, 200, 60, max_context_tokens, 2)
    loop = RolloutLoop(tokenizer, ScriptedSampler(script), FixedRetriever(), limits, render_frame(tokenizer, "compact"))
    groups = loop.roll_out(
        [make_question(number) for number in range(num_groups)],
        run_seed=seed,
        iteration=1,
        policy_version=0,
        group_size=len(texts),
        temperature=1.0,
    )
    draw = random.Random(seed)
    return [with_logprobs(group, lambda rollout, place: draw.uniform(-8.0, -2.0)) for group in groups]


def with_logprobs(group: Group, logprob_of: Callable[[Rollout, int], float | None]) -> Group:
    """The group with the sampler's log-probability of each sampled token given by (rollout, place among them)."""
    rollouts = []
    for rollout in group.rollouts:
        place, turns = 0, []
        for turn in rollout.turns:
            count = len(turn.generation.token_ids)
            values = tuple(logprob_of(rollout, place + offset) for offset in range(count))
            generation = turn.generation.model_copy(update={"sampled_logprobs": values})
            turns.append(turn.model_copy(update={"generation": generation}))
            place += count
        rollouts.append(rollout.model_copy(update={"turns": tuple(turns)}))
    return group.model_copy(update={"rollouts": tuple(rollouts)})
