"""Questions with their golden answers."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Record


class Question(Record):
    """One question of a data set; `dataset` and `id` together are unique in a workspace."""

    id: str = Field(min_length=1, description="Id within its data set.")
    dataset: str = Field(min_length=1, description="Name of the data set.")
    split: str = Field(description="train, dev or test, as the data set names it.")
    question: str = Field(min_length=1, description="The question's text.")
    golden_answers: tuple[str, ...] = Field(
        min_length=1, description="Accepted answers; a score is the best over them."
    )
    category: str = Field(default="", description="The data set's own type of question; empty when it has none.")

    @property
    def key(self) -> str:
        """The id that no other data set shares."""
        return f"{self.dataset}:{self.id}"
