"""What a worker's process is ordered to do: a line of JSON, told apart by its `kind`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from schemas.base import Record
from schemas.records.ledger import StageRecord

ERROR_PREFIX: Final = "error: "
"""Begins the line in which a worker says why it could not do its job."""


class TrainOrder(Record):
    """A run to train."""

    kind: Literal["train"] = "train"
    run: str = Field(description="Name of the run.")
    workspace: str = Field(description="Absolute path of the workspace.")
    settings_json: str = Field(description="All settings of the run.")
    alike: tuple[str, ...] = Field(description="Runs whose start may have been evaluated for this one too.")


class EvaluateOrder(Record):
    """Policies of a run to evaluate, each in an evaluation of its own."""

    kind: Literal["evaluate"] = "evaluate"
    source: str = Field(description="The run whose policies are evaluated.")
    evaluations: dict[str, int] = Field(description="Names of the evaluations, and the versions that they evaluate.")
    workspace: str = Field(description="Absolute path of the workspace.")
    settings_json: str = Field(description="All settings of the evaluations.")


class AnswerOrder(Record):
    """Batches of an evaluation to answer for the process that evaluates and holds the evaluation's lock."""

    kind: Literal["answer"] = "answer"
    source: str | None = Field(description="The run whose policy answers; None for a model.")
    attempt: StageRecord = Field(description="The attempt at the evaluation that the batches belong to.")
    batches: tuple[str, ...] = Field(description="Names of the batches, in the order in which they are answered.")
    workspace: str = Field(description="Absolute path of the workspace.")
    settings_json: str = Field(description="All settings of the evaluation.")


class EmbedOrder(Record):
    """Shards of a corpus to embed; other processes may take some of them."""

    kind: Literal["embed"] = "embed"
    retrieval_json: str = Field(description="The settings of the dense retriever.")
    num_shards: int = Field(description="Shards that the corpus is cut into.")
    only: tuple[int, ...] = Field(description="Those that are made.")
    workspace: str = Field(description="Absolute path of the workspace.")


Order = TrainOrder | EvaluateOrder | AnswerOrder | EmbedOrder
ORDERS: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="kind")])
