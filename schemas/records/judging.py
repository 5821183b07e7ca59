"""What a judge said of an evaluation's answers."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Record
from schemas.records.evaluation import EvaluationMode


class AnswerVerdict(Record):
    """A judge's verdict on one answer of an evaluation."""

    mode: EvaluationMode = Field(description="greedy or sampled.")
    dataset: str = Field(description="Name of the data set.")
    split: str = Field(description="Its split.")
    question_key: str = Field(description="dataset:id.")
    judged_right: bool = Field(
        description="Whether the judge calls the answer right; false, unasked, where there is none."
    )
    reply: str = Field(description="What the judge wrote; empty where it was not asked.")
    asked_sha256: str = Field(
        description="Hash of the judge's model, its prompt, the question and the answer; empty where it was not asked."
    )


class JudgedEvaluation(Record):
    """What a judge said of an evaluation's answers to one data set."""

    mode: EvaluationMode = Field(description="greedy or sampled.")
    dataset: str = Field(description="Name of the data set.")
    split: str = Field(description="Its split.")
    model: str = Field(description="The judge's model (evaluation.judge.model).")
    prompt: str = Field(description="What it was asked, with places for question, golden answers and answer.")
    num_questions: int = Field(ge=1, description="Answers, those of questions that got none included.")
    judged_right: float = Field(description="Share of answers that the judge calls right.")
