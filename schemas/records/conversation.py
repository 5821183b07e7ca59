"""A rollout as other programs read it: messages of a chat, and beside them what each turn meant and found."""

from __future__ import annotations

from typing import Literal, assert_never

from pydantic import Field

from schemas.base import Record
from schemas.records.hindsight import Label
from schemas.records.passage import Passage
from schemas.records.rollout import Answer, Malformed, Search, Turn


class Message(Record):
    """One message of a chat."""

    role: Literal["user", "assistant", "tool"] = Field(description="Who speaks; a tool is the environment.")
    content: str = Field(description="What is said, special tokens kept.")


class SaidTurn(Record):
    """What a turn of the policy meant, whatever protocol it was said in."""

    kind: Literal["search", "answer", "malformed"] = Field(description="What it is.")
    said: str = Field(description="The query, the answer, or what is wrong with the turn.")
    replied: bool = Field(description="True when the environment replied.")
    passages: tuple[Passage, ...] = Field(description="What its search found, best first, whole.")

    @classmethod
    def of(cls, turn: Turn) -> SaidTurn:
        """Return what a sampled turn meant."""
        match turn.action:
            case Search(query=said) | Answer(answer=said) | Malformed(reason=said):
                passages = tuple(hit.passage for hit in turn.hits)
                return cls(kind=turn.action.kind, said=said, replied=turn.observation is not None, passages=passages)
            case unknown:
                assert_never(unknown)


class Conversation(Record):
    """A line of `conversations.jsonl` (`sdsearch export RUN --rollouts`)."""

    messages: tuple[Message, ...] = Field(description="The question, each generation, each reply, in order.")
    turns: tuple[SaidTurn, ...] = Field(description="What each message of the assistant meant.")
    em: float = Field(description="Exact match.")
    f1: float = Field(description="Token F1.")
    reward: float = Field(description="What it earned.")
    advantage: float = Field(description="Its advantage among its siblings.")
    outcome: Label = Field(description="Its label in a hindsight block.")
    answer: str | None = Field(description="Its answer, empty when it has none.")
    golden_answers: tuple[str, ...] = Field(description="The right answers.")
    question_key: str = Field(description="Its question.")
    run: str = Field(description="Its run.")
    iteration: int = Field(ge=0, description="The iteration that it was sampled in.")
    group_id: str = Field(description="Its group; siblings have the same.")
    rollout_id: str = Field(description="Its id in the run.")
