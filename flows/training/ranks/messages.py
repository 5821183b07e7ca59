"""What the process that holds a run, its ranks and its other machines tell each other through the store, by name."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from schemas.base import Record
from schemas.records.ledger import StageRecord
from sdsearch.sampling.vllm_weights import Passage

HOST: Final = "127.0.0.1"
SETTINGS: Final = "settings"
PROGRAM: Final = "program"
PLACE: Final = "place"
COMMAND: Final = "command"
"""COMMAND/n is the n-th command; ANSWER/n what the first rank wrote for it."""
ANSWER: Final = "answer"
DONE: Final = "done"
"""DONE/n/r is set when rank r has done its part of the n-th command."""
HERE: Final = "here"
"""HERE/r is the process of rank r, as soon as it waits for the other ranks to start."""
ERROR: Final = "error"
"""ERROR/r is why rank r ended."""
PROGRESS: Final = "progress"
END: Final = "end"
READ: Final = "read"
MACHINES: Final = "machines"
"""Counts the machines that asked to join; MACHINES/n is the n-th, BEAT/n counts its signs of life, LEFT/n is why it
ended, and empty where its work was done."""
BEAT: Final = "beat"
LEFT: Final = "left"
START: Final = "start"
"""Set when the machines may start their ranks."""
STOP: Final = "stop"
"""Why the run ended: what the machines tell."""


class Program(Record):
    """What a process computes with: ranks that had loaded other code would give other numbers."""

    torch: str = Field(description="torch's version.")
    sources: dict[str, str] = Field(description="The sha256 of each source that decides the ranks' work, by path.")


class Place(Record):
    """Which run the ranks work for, and how a machine can tell that it sees the run's workspace."""

    run: str = Field(description="The run.")
    source: str = Field(description="The run whose policy a replay asks; '': none.")
    host: str = Field(description="The run's machine.")
    pid: int = Field(description="The run's process, which its lock names too.")


class Machine(Record):
    """A machine that joined."""

    host: str = Field(description="Its name.")
    pid: int = Field(description="The process that starts its ranks.")


class RankProcess(Record):
    """A rank that has started."""

    host: str = Field(description="The machine that it runs on.")
    pid: int = Field(description="Its process.")


class Command(Record):
    """What all ranks do next."""

    work: str = Field(description="The stage's work, 'read' or 'end'.")
    records: tuple[StageRecord, ...] = Field(default=(), description="The attempt, and the records that it reads.")
    version: int = Field(default=0, description="With 'read': the policy's version.")
    passages: tuple[Passage, ...] = Field(default=(), description="With 'read': what is read.")


class Failure(Record):
    """Why a rank ended."""

    text: str = Field(description="One line.")
    is_for_people: bool = Field(description="Whether a single process would have refused it too, in these words.")
    waited: bool = Field(default=False, description="Whether it waited for another rank until distributed.timeout_s.")
