"""What says that nothing can be learnt from a run: figures in, sentences out.

A sentence says what was seen and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from schemas.records.evaluation import EvaluationAnswer
from schemas.records.ledger import RunWarning
from schemas.records.rollout import Answer, Generation, Malformed, Search, Turn
from schemas.settings.root import DistillationSettings

# A policy that knows the protocol fails now and then; one that does not may meet it by chance.
_ALMOST_ALL = 0.95
_LONGEST_EXAMPLE = 200
_REASONS = {
    "no_action": "it closes neither a search (</search>) nor an answer (</answer>)",
    "not_opened": "its closing tag has no opening tag",
    "unreadable": "its call cannot be read",
    "unknown_tool": "it calls a tool that is not there",
    "two_calls": "it makes more than one call",
    "empty_query": "its search is empty",
    "empty_answer": "its answer is empty",
}


@dataclass(frozen=True)
class IterationFigures:
    """What an iteration gave to learn from."""

    iteration: int
    num_mixed_groups: int  # Groups with an advantage other than 0.
    num_searches: int
    num_hits: int  # Passages found, over all searches.
    reward_mean: float
    grad_norm: float  # The largest of its optimiser steps'.


def got_nothing(answer: EvaluationAnswer) -> bool:
    """True when a question got neither a search nor an answer."""
    return answer.answer is None and not answer.queries


def writes_no_turn(answers: Sequence[EvaluationAnswer]) -> bool:
    """True when almost no question of an evaluation got a search or an answer."""
    return _num_without(answers) >= _ALMOST_ALL * len(answers)


def describe_no_turn(answers: Sequence[EvaluationAnswer]) -> str:
    """Say that the policy writes no turn of the protocol."""
    return (
        f"the policy does not write the turns of the protocol: of {len(answers)} evaluated questions "
        f"{_num_without(answers)} got neither a search nor an answer"
    )


def describe_example(question: str, turn: Turn, template: str) -> str:
    """Say why `turn`, the first that the policy wrote to `question`, is none of the protocol, and what to do."""
    return (
        f"to '{_short(question)}' it wrote '{_short(turn.generation.text)}', which is no turn: {_why_no_turn(turn)}; "
        f"such rollouts earn nothing and teach nothing; {_remedy(turn.generation, template)}"
    )


def find_nothing_learnt(last: Sequence[IterationFigures], distillation: DistillationSettings) -> list[RunWarning]:
    """Return what all of these iterations lack; they follow each other, the latest stands last."""
    first, latest = last[0].iteration, last[-1].iteration
    when = f"iterations {first} to {latest}" if first < latest else f"iteration {latest}"
    num_searches = sum(figures.num_searches for figures in last)
    reward = sum(figures.reward_mean for figures in last) / len(last)
    seen = {
        "no_mixed_group": not any(figures.num_mixed_groups for figures in last),
        "no_query": distillation.enabled and distillation.positions == "query" and not num_searches,
        "no_gradient": not any(figures.grad_norm for figures in last),
        "nothing_found": all(figures.num_searches and not figures.num_hits for figures in last),
    }
    texts = {
        "no_mixed_group": f"no group of {when} had rollouts with different rewards (mean reward {reward:.3f}), so "
        "every advantage was 0 and GRPO learnt nothing; take harder or easier questions, a larger "
        "rollout.group_size, a higher rollout.temperature, or a reward.format_bonus",
        "no_query": f"no rollout of {when} searched, so L_SD had no query token to learn from; take a policy that "
        "searches, or set distillation.enabled = false for plain GRPO",
        "no_gradient": f"the gradient of every optimiser step of {when} was exactly 0: the weights did not change; "
        "what the rollouts lack is in: SELECT * FROM v_iterations",
        "nothing_found": f"none of the {num_searches} searches of {when} found a passage; compare the queries (SELECT "
        "query FROM searches) with the corpus and the index under [retrieval]",
    }
    return [
        RunWarning.model_validate({"kind": kind, "iteration": latest, "text": texts[kind]})
        for kind, applies in seen.items()
        if applies
    ]


def _num_without(answers: Sequence[EvaluationAnswer]) -> int:
    return sum(map(got_nothing, answers))


def _why_no_turn(turn: Turn) -> str:
    match turn.action:
        case Malformed(reason=reason):
            return _REASONS[reason]
        case Search():
            return "the documents that it asked for do not fit into the model's context"
        case Answer():
            return "it answers, where the evaluated questions got no answer"
        case unknown:
            assert_never(unknown)


def _remedy(generation: Generation, template: str) -> str:
    longer = "raise rollout.max_new_tokens, which cut this turn; or " if generation.stop_reason == "length" else ""
    asked = "set rollout.template = 'instruct', which explains the protocol; or " if template == "compact" else ""
    shown = "" if template == "few_shot" else "set rollout.template = 'few_shot', which shows it at work; or "
    return f"{longer}{asked}{shown}teach it by 'sdsearch warmup' (docs/how-to/warmup.md)"


def _short(text: str) -> str:
    flat = " ".join(text.split()) or "(blanks alone)"
    return flat if len(flat) <= _LONGEST_EXAMPLE else f"{flat[: _LONGEST_EXAMPLE - 1]}…"
