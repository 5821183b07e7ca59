"""What reading a data set gave, and where its questions are kept."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from schemas.base import Record
from schemas.records.ledger import ArtifactRef


class DroppedRows(Record):
    """The rows of a data set that were left out for one reason."""

    reason: str = Field(description="Why they were left out.")
    num_rows: int = Field(ge=1, description="Rows left out for this reason.")
    example: str = Field(description="What was wrong with the first of them, and where it is.")


class QuestionSet(Record):
    """What reading one split of a data set gave."""

    dataset: str = Field(description="Name of the data set.")
    split: str = Field(description="train, dev or test, as the data set names it.")
    location: str = Field(description="Where it was read from, as the settings write it.")
    num_rows: int = Field(description="Rows of this data set in the source.")
    num_kept: int = Field(description="Questions that can be used.")
    dropped: tuple[DroppedRows, ...] = Field(
        description="Rows that were left out, the most frequent reason first: why, how many, and what was "
        "wrong with the first."
    )
    questions_sha256: str = Field(description="Hash of the questions that were kept, their answers, ids and order.")

    @property
    def num_dropped(self) -> int:
        """Rows that were left out."""
        return self.num_rows - self.num_kept


class PreparedSet(Record):
    """A split of a data set as `sdsearch data prepare` left it in the workspace."""

    report: QuestionSet = Field(description="What reading the split gave.")
    file: ArtifactRef = Field(
        description="The file of the questions that were kept, in the source's order: path below the "
        "workspace, sha256, size in bytes."
    )
    prepared_at: datetime = Field(description="When it was prepared, UTC.")
