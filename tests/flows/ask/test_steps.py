"""A turn's steps: each part of what was written, and every token in one of them."""

from __future__ import annotations

import pytest

from flows.ask.steps import steps_of
from schemas.records.asking import WrittenStep
from schemas.records.rollout import Rollout
from sdsearch.protocol.prompting import render_frame
from sdsearch.sampling.rollouts import RolloutLimits, RolloutLoop
from tests.support.builders import make_groups, make_question, make_tokenizer
from tests.support.fakes import FixedRetriever, ScriptedSampler


def roll_out(text: str, tags: str = "text") -> tuple[RolloutLoop, Rollout]:
    """Return a rollout of which the first turn says `text`, then one that answers."""
    tokenizer = make_tokenizer(tags)  # type: ignore[arg-type]

    def script(key: str, turn: int) -> tuple[list[int], str]:
        return tokenizer.encode("<answer> tree </answer>" if turn else text, add_special_tokens=False), "length"

    frame, limits = render_frame(tokenizer, "compact"), RolloutLimits(2, 64, 200, 60, 512, 2)
    loop = RolloutLoop(tokenizer, ScriptedSampler(script), FixedRetriever(), limits, frame)
    (group,) = loop.roll_out(
        [make_question()], run_seed=0, iteration=0, policy_version=0, group_size=1, temperature=0.0
    )
    return loop, group.rollouts[0]


@pytest.mark.parametrize("tags", ["text", "special"])
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think> a </think>\n<search> river </search>", [("think", "a"), ("query", "river")]),
        (
            "so <think>a</think> then <search>b  c</search>",
            [("text", "so"), ("think", "a"), ("text", "then"), ("query", "b  c")],
        ),
        ("<search> a <search> b </search>", [("text", "a"), ("query", "b")]),
        ("<search> never closed", [("text", "never closed")]),
        ("a </search> b", [("text", "a"), ("text", "b")]),
        ("<search>  </search>", [("text", "")]),
        ("<think> a </think> <answer> é東 </answer>", [("think", "a"), ("answer", "é東")]),
        ("no tag at all<|end|>", [("text", "no tag at all<|end|>")]),
        ("  ", [("text", "")]),
    ],
)
def test_parts_of_a_turn(text: str, parts: list[tuple[str, str]], tags: str) -> None:
    loop, rollout = roll_out(text, tags)
    turn = rollout.turns[0]
    written = [step for step in steps_of(loop, 1, turn) if isinstance(step, WrittenStep)]
    assert [(step.kind, step.text) for step in written] == parts
    assert sum(step.num_tokens for step in written) == len(turn.generation.token_ids)


def test_replies_follow_what_asked_for_them() -> None:
    tokenizer = make_tokenizer()
    loop, _ = roll_out("x")
    for group in make_groups(tokenizer):
        for rollout in group.rollouts:
            for number, turn in enumerate(rollout.turns, 1):
                *_, last = steps_of(
                    RolloutLoop(tokenizer, loop.sampler, loop.retriever, loop.limits, loop.frame), number, turn
                )
                expected = {None: "written", "notice": "notice", "documents": "passages"}
                kind = turn.observation.kind if turn.observation else None
                assert {"notice": "notice", "passages": "passages"}.get(last.kind, "written") == expected[kind]
                assert not turn.observation or last.num_tokens == len(turn.observation.token_ids)  # type: ignore[union-attr]
