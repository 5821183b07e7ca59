"""The mini policy taught tool calls: a chat template with tools, its marks, and demonstrations in its words."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from schemas.records.evaluation import EvaluationMode
from sdsearch.evaluation.answering import fixed_sample
from sdsearch.protocol.prompting import render_frame
from sdsearch.protocol.tool_call import ToolCall
from sdsearch.seeds import derive_seed
from sdsearch.training.supervised import Batch, Layout, bucket
from sdsearch.world import load_passages, load_questions
from sdsearch.world.build import BuildProgress, ShowProgress, make_loop, make_retriever
from sdsearch.world.demonstrations import (
    MAX_BLOCK_TOKENS,
    MAX_OBSERVATION_TOKENS,
    DemonstrationKind,
    Stage,
    make_demonstration,
)
from sdsearch.world.markup import NameSource, load_marked_world
from sdsearch.world.pretrain import pretrain
from sdsearch.world.probe import PlainFigures, measure_plain
from sdsearch.world.scripts import QueryBook
from sdsearch.world.tokenizer import END

MAX_NEW_TOKENS: Final = 96
"""Of a turn; a call has some 40 tokens beside its query."""

_RATE: Final = 1e-3
_TOKENS_PER_BATCH: Final = 2500
_PER_CHUNK: Final = 200
_MIX: Final[dict[DemonstrationKind, float]] = {"plain": 0.7, "natural": 0.15, "critical": 0.15}
_START, _STOP = "<|im_start|>", "<|im_end|>"
# Marks of the template, each with the token of the mini policy that it is like.
_LIKE: Final = {
    _START: END,
    _STOP: END,
    "<tool_call>": "<search>",
    "</tool_call>": "</search>",
    "<tool_response>": "<documents>",
    "</tool_response>": "</documents>",
}
# Roles as in ChatML and calls as in Hermes; a tool is told in one line, since a small model's context is small.
TEMPLATE: Final = (
    "{%- if tools %}<|im_start|>system"
    "{%- for t in tools %}{{ '\n' + t.function.name }}({{ t.function.parameters.required | join(', ') }}): "
    "{{ t.function.description }}{%- endfor %}<|im_end|>{{ '\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{%- for c in m.tool_calls or [] %}{{ '\n' if m.content else '' }}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{%- endfor %}<|im_end|>\n{% endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def give_template(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Give a mini policy the chat template and its marks, in place; a mark begins as the token that it is like."""
    tokenizer.add_special_tokens({"additional_special_tokens": list(_LIKE)}, replace_extra_special_tokens=False)
    tokenizer.eos_token = _STOP
    tokenizer.chat_template = TEMPLATE
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        for mark, like in _LIKE.items():
            embeddings[tokenizer.convert_tokens_to_ids(mark)] = embeddings[tokenizer.convert_tokens_to_ids(like)]


def tool_layout(tokenizer: PreTrainedTokenizerFast) -> Layout:
    """Return the layout in which the policy is trained."""
    own = ToolCall()
    frame = render_frame(tokenizer, "compact", own)
    return Layout(tokenizer, own, frame, MAX_OBSERVATION_TOKENS, MAX_BLOCK_TOKENS)


def train_tool_calls(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    progress: ShowProgress,
    num_steps: int,
) -> None:
    """Train a mini policy that has the template, in place, on whole conversations with and without a block.

    The same seed, machine and number of threads give the same weights.
    """
    world = load_marked_world()
    plans = [plan for plan in world.plans if plan.split == "train"]
    progress(BuildProgress("queries", 0, 1, None))
    book = QueryBook(world, plans, make_retriever(load_passages()), Random(derive_seed(seed, "queries")))
    stage = Stage(world, book, tool_layout(tokenizer), NameSource(tokenizer, world))
    random = Random(derive_seed(seed, "tool calls"))

    def batches() -> Iterator[Batch]:
        while True:
            kinds = random.choices(list(_MIX), weights=list(_MIX.values()), k=_PER_CHUNK)
            made = [make_demonstration(stage, random.choice(plans), kind, random) for kind in kinds]
            yield from bucket(made, _TOKENS_PER_BATCH, random)

    torch.manual_seed(seed)
    for report in pretrain(model, batches(), num_steps, _RATE):
        progress(BuildProgress("tool calls", report.step, num_steps, report.loss))


def measure_tool_calls(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, num_questions: int = 100
) -> dict[EvaluationMode, PlainFigures]:
    """Return what the policy does on dev questions, greedily and sampled."""
    questions = fixed_sample(load_questions("dev"), num_questions, seed)
    loop = make_loop(model, tokenizer, make_retriever(load_passages()), ToolCall(), MAX_NEW_TOKENS)
    return {mode: measure_plain(loop, questions, mode, seed) for mode in ("greedy", "sampled")}
