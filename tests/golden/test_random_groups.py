"""Every switch at once over random groups: the batched objective against the naive one.

Rollouts are ragged, search several times or never, are cut off, malformed or out of room; queries may be empty.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from schemas.records.rollout import Group
from schemas.settings.root import Settings
from tests.golden.cases import assert_same_loss, make_case, make_settings
from tests.support.builders import make_groups, make_tokenizer

words = st.lists(st.sampled_from(["capital", "Andorra", "river", "東京", "a", "|", "\n", "of"]), min_size=1, max_size=5)
searches = st.builds("<think> {} </think><search> {} </search>".format, words.map(" ".join), words.map(" ".join))
malformed = st.sampled_from(
    [
        "<search>  </search>",
        "state of Europe<|end|>",
        "<search> Europe",
        "tree </search>",
        "<|end|>",
        "<answer> </answer>",
    ]
)
answers = st.sampled_from(["Andorra la Vella", "Andorra", "tree", "the vella"]).map("<answer> {} </answer>".format)


@st.composite
def rollout_texts(draw: st.DrawFn) -> list[str]:
    """Up to four turns; without an answer the cap on searches ends the rollout."""
    turns = draw(st.lists(searches | malformed, max_size=4))
    return [*turns, draw(answers)] if len(turns) < 4 else turns


@st.composite
def group_lists(draw: st.DrawFn, pad: str) -> list[Group]:
    groups = []
    for number in range(draw(st.integers(1, 2))):
        texts = draw(st.lists(rollout_texts(), min_size=2, max_size=3))
        room = draw(st.sampled_from([90, 150, 300]))
        groups.append(make_groups(make_tokenizer(pad=pad), number + 1, texts, max_context_tokens=room)[number])
    return groups


def switches(**choices: list[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: st.sampled_from(values) for name, values in choices.items()})


SECTIONS = {
    "model": switches(tuning=["full", "full", "lora"]),
    "rollout": switches(temperature=[1.0, 0.7]),
    "reward": switches(metric=["f1", "em"], format_bonus=[0.0, 0.2]),
    "grpo": switches(
        advantage_scale=["group", "batch", "none"],
        clip_low=[0.2, 0.05],
        clip_high=[0.2, 0.4],
        old_logprobs=["sampler", "trainer"],
        importance_cap=[2.0, 1.1],
        kl_coefficient=[0.03, 0.0],
        aggregation=["token_mean", "sequence_mean", "constant"],
    ),
    "hindsight": switches(
        masking=["queries", "queries", "none", "current_documents"],
        labels=["outcome", "none", "shuffled", "random"],
        members=["group", "leave_one_out", "focal_only", "correct_only"],
        homogeneous=["keep", "skip"],
        unsent_queries=["drop", "keep"],
        rho=[0.0, 0.6],
        label_metric=["f1", "em"],
        max_block_tokens=[40, 150],
    ),
    "distillation": switches(
        positions=["query", "completion"],
        divergence=["jsd", "forward_kl", "reverse_kl", "mse"],
        support=["teacher", "student", "full"],
        tail=["bucket", "renormalise"],
        top_k=[1, 5, 50],
    ),
    "update": switches(max_tokens_per_microbatch=[1, 200, 100_000], head_chunk=[4, 31, 2048]),
}


@st.composite
def any_settings(draw: st.DrawFn) -> Settings:
    sections = {name: draw(strategy) for name, strategy in SECTIONS.items()}
    if sections["hindsight"]["masking"] == "current_documents":
        sections["hindsight"] |= {"members": "group", "labels": "outcome"}
    if sections["hindsight"]["members"] == "correct_only":
        sections["hindsight"]["labels"] = "outcome"
    if sections["distillation"]["divergence"] == "mse":
        sections["distillation"]["tail"] = "bucket"
    return make_settings(**sections)


@pytest.mark.parametrize(("kind", "pad"), [("llama", "own"), ("qwen2", "eos")])
@settings(max_examples=10, phases=[Phase.explicit, Phase.generate])  # Shrinking would take minutes.
@given(st.data())
def test_any_settings_on_any_groups(kind: str, pad: str, data: st.DataObject) -> None:
    chosen = data.draw(any_settings())
    groups, missing = data.draw(group_lists(pad)), data.draw(st.sampled_from([0.0, 0.3]))
    assert_same_loss(make_case(chosen, groups, kind, make_tokenizer(pad=pad), missing=missing))
