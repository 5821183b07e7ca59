"""Passages of the corpus and what a search returns."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Record


class Passage(Record):
    """One passage of the corpus."""

    id: str = Field(min_length=1, description="Id within the corpus.")
    title: str = Field(description="Title, without quotes.")
    text: str = Field(description="The passage without its title.")

    @property
    def contents(self) -> str:
        """Title and text as the Search-R1 corpus writes them."""
        return f'"{self.title}"\n{self.text}'


class SearchHit(Record):
    """A passage that a search returned."""

    passage: Passage = Field(description="The passage found.")
    score: float = Field(description="Inner product of query and passage vectors; higher is closer.")
