"""Which questions can be answered from what is searched: a bound of every policy's results, whoever it is."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Record
from schemas.records.ledger import ArtifactRef


class QuestionAnswerability(Record):
    """Where a golden answer of one question stands."""

    question_key: str = Field(description="dataset:id.")
    golden_answers: tuple[str, ...] = Field(description="The accepted answers that were looked for.")
    in_corpus: bool | None = Field(
        description="Whether a passage of the corpus contains one; empty where the corpus cannot be read here."
    )
    in_top_k: bool = Field(description="Whether one of the passages that the question itself finds contains one.")


class Answerability(Record):
    """How much of one split of a data set can be answered from what is searched."""

    dataset: str = Field(description="Name of the data set.")
    split: str = Field(description="Its split.")
    questions_sha256: str = Field(description="Hash of the questions, their answers, ids and order.")
    corpus: str = Field(description="What is searched: retrieval.corpus, 'a server', or a plugin.")
    corpus_sha256: str = Field(description="Hash of the corpus's source; empty where the corpus cannot be read here.")
    index_hash: str = Field(description="Fingerprint of all that decides what a search finds.")
    num_passages: int = Field(ge=1, description="Passages that a question itself finds, k.")
    num_questions: int = Field(ge=1, description="Questions.")
    num_in_corpus: int | None = Field(
        description="Questions with a golden answer in any passage; empty where the corpus cannot be read here."
    )
    num_in_top_k: int = Field(description="Questions with a golden answer in the k passages that the question finds.")
    file: ArtifactRef = Field(description="The file with a row a question.")
