"""Evaluations of a policy on a fixed sample of questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

from pydantic import Field

from schemas.base import Record, hash_json

EvaluationMode = Literal["greedy", "sampled"]
HASH_CHARS: Final = 12
"""What of a hash people are shown."""


class EvaluationAnswer(Record):
    """One question's outcome."""

    question_key: str = Field(description="dataset:id.")
    question: str = Field(description="The question's text.")
    golden_answers: tuple[str, ...] = Field(description="Accepted answers.")
    category: str = Field(description="The data set's own type of question.")
    answer: str | None = Field(description="The policy's answer; empty when it gave none.")
    queries: tuple[str, ...] = Field(description="What it searched for, in order.")
    em: float = Field(description="Exact match, 0 or 1.")
    f1: float = Field(description="Token F1 in [0, 1].")
    valid_format: bool = Field(description="True when no turn was malformed and it ended with an answer.")
    num_hits: int = Field(description="Passages retrieved.")
    num_golden_hits: int = Field(description="Retrieved passages that contain a golden answer.")
    num_completion_tokens: int = Field(description="Tokens that the policy sampled.")
    cover_em: float | None = Field(
        default=None,
        description="1 when the answer contains a golden one, else 0; empty in evaluations of earlier versions.",
    )
    found: tuple[tuple[str, ...], ...] = Field(
        default=(),
        description="Ids of the passages that each search found, best first; empty in evaluations of earlier versions.",
    )


class EvaluationReport(Record):
    """Means over an evaluation's questions."""

    iteration: int = Field(description="Updates done before this evaluation.")
    policy_version: int = Field(description="Version of the evaluated weights.")
    mode: EvaluationMode = Field(description="greedy or sampled.")
    dataset: str = Field(description="Name of the data set.")
    split: str = Field(description="Its split.")
    num_questions: int = Field(description="Questions.")
    em: float = Field(description="Mean exact match.")
    f1: float = Field(description="Mean token F1.")
    search_quality: float = Field(description="Share of retrieved passages that contain a golden answer.")
    searches_per_rollout: float = Field(description="Mean number of searches.")
    valid_share: float = Field(description="Share of rollouts with a valid format.")
    completion_tokens_mean: float = Field(description="Mean sampled tokens of an answer's rollout (response length).")
    cover_em: float | None = Field(
        default=None,
        description="Share of answers that contain a golden one; empty in evaluations of earlier versions.",
    )
    further: bool = Field(
        default=False, description="True for a set of evaluation.sets, besides the one that the run is evaluated on."
    )


class EvaluationConditions(Record):
    """What an evaluation was made under; two with the same fingerprint differ in the policy alone."""

    mode: EvaluationMode = Field(description="greedy or sampled.")
    dataset: str = Field(description="Name of the data set.")
    split: str = Field(description="Its split.")
    questions_sha256: str = Field(description="Hash of the questions that were asked, with their golden answers.")
    corpus: str = Field(description="What is searched: retrieval.corpus, 'a server', or a plugin.")
    retriever: str = Field(description="retrieval.kind, and the kind of its index.")
    encoder: str = Field(description="What turns texts into vectors; empty where nothing in this process does.")
    index_hash: str = Field(description="Fingerprint of all that decides what a search finds.")
    num_passages: int = Field(description="Passages per query.")
    protocol: str = Field(description="rollout.protocol, the wording of its prompt, and its options.")
    limits: str = Field(description="Searches, tokens of a turn, of a reply and of a prompt.")
    decoding: str = Field(description="greedy, or the temperature; the seed; the sampler; the type of the weights.")
    code_version: str = Field(description="Version of the program, and the hash of the sources that evaluated.")

    @property
    def compared(self) -> dict[str, object]:
        """What must be the same for two results to be compared, by name; corpus and encoder are in the index's hash."""
        names = ("questions_sha256", "index_hash", "num_passages", "protocol", "limits", "decoding")
        return {name: getattr(self, name) for name in names}

    @property
    def fingerprint(self) -> str:
        """The hash of what must be the same."""
        return hash_json(self.compared)

    @property
    def told(self) -> str:
        """The line that stands below every table of an evaluation."""
        how = ", ".join(filter(None, (self.retriever, self.encoder)))
        return (
            f"searched: {self.corpus} ({how}), index {self.index_hash[:HASH_CHARS]}, {self.num_passages} passages a "
            f"query; protocol {self.protocol}, {self.limits}; decoding {self.decoding}; program {self.code_version}"
        )


def told_conditions(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the lines below a table whose rows have the columns of `evaluation_conditions`, each line once.

    Rows of evaluations that kept no conditions have nothing in these columns, and no line.
    """
    names = EvaluationConditions.model_fields
    known = (EvaluationConditions(**{name: row[name] for name in names}) for row in rows if row["corpus"] is not None)
    return list(dict.fromkeys(conditions.told for conditions in known))
