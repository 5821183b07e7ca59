"""Evaluations of a policy on a fixed sample of questions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Record

EvaluationMode = Literal["greedy", "sampled"]


class EvaluationAnswer(Record):
    """One question's outcome."""

    question_key: str
    question: str
    golden_answers: tuple[str, ...]
    category: str
    answer: str | None
    queries: tuple[str, ...]
    em: float
    f1: float
    valid_format: bool
    num_hits: int
    num_golden_hits: int
    num_completion_tokens: int = Field(description="Tokens that the policy sampled.")


class EvaluationReport(Record):
    """Means over an evaluation's questions."""

    iteration: int = Field(description="Updates done before this evaluation.")
    policy_version: int
    mode: EvaluationMode
    dataset: str
    split: str
    num_questions: int
    em: float
    f1: float
    search_quality: float = Field(description="Share of retrieved passages that contain a golden answer.")
    searches_per_rollout: float
    valid_share: float
    completion_tokens_mean: float = Field(description="Mean sampled tokens of an answer's rollout (response length).")
