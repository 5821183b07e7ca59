"""What the process that holds a run and its ranks tell each other through the store, and under which names."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from schemas.base import Record
from schemas.records.ledger import StageRecord

HOST: Final = "127.0.0.1"
SETTINGS: Final = "settings"
PROGRAM: Final = "program"
COMMAND: Final = "command"
"""COMMAND/n is the n-th command; ANSWER/n what the first rank wrote for it."""
ANSWER: Final = "answer"
ERROR: Final = "error"
"""ERROR/r is why rank r ended."""
PROGRESS: Final = "progress"
END: Final = "end"


class Program(Record):
    """What a process computes with: ranks that had loaded other code would give other numbers."""

    torch: str = Field(description="torch's version.")
    sources: dict[str, str] = Field(description="The sha256 of each source that decides the ranks' work, by path.")


class Command(Record):
    """What all ranks do next."""

    work: str = Field(description="The stage's work, or 'end'.")
    records: tuple[StageRecord, ...] = Field(description="The attempt, and the records that it reads.")


class Failure(Record):
    """Why a rank ended."""

    text: str = Field(description="One line.")
    is_for_people: bool = Field(description="Whether a single process would have refused it too, in these words.")
