"""What happens while a policy answers a question, step by step: the lines of `sdsearch ask --json`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Record
from schemas.records.passage import SearchHit
from schemas.records.rollout import MalformedReason, StopReason

_TURN = Field(ge=1, description="Turn of the rollout, from 1.")


class BlockStep(Record):
    """The hindsight block that the policy is shown before the question, as a teacher is."""

    kind: Literal["hindsight"] = Field(default="hindsight", description="This step.")
    run: str = Field(description="The run whose rollouts the block tells of.")
    iteration: int = Field(description="The iteration that sampled them.")
    text: str = Field(description="The block.")
    num_tokens: int = Field(description="Its tokens.")


class WrittenStep(Record):
    """A part of what the policy wrote in a turn."""

    kind: Literal["think", "query", "answer", "text"] = Field(
        description="think; query: what the turn searches for; answer; text: anything else."
    )
    turn: int = _TURN
    text: str = Field(description="The text inside the tags, without blanks around it.")
    num_tokens: int = Field(description="Its tokens, the tags' included.")


class PassagesStep(Record):
    """The reply to a search."""

    kind: Literal["passages"] = Field(default="passages", description="This step.")
    turn: int = _TURN
    query: str = Field(description="What was searched for.")
    hits: tuple[SearchHit, ...] = Field(description="What the search returned, best first; empty for nothing found.")
    num_tokens: int = Field(description="Tokens that the policy reads of them.")
    num_tokens_cut: int = Field(description="Tokens left out to keep to the length of an observation.")


class NoticeStep(Record):
    """The reply to a turn that is neither a search nor an answer."""

    kind: Literal["notice"] = Field(default="notice", description="This step.")
    turn: int = _TURN
    reason: MalformedReason = Field(description="What is ill-formed.")
    text: str = Field(description="What the policy is told.")
    num_tokens: int = Field(description="Its tokens.")


class EndStep(Record):
    """The end of a rollout, and what it came to."""

    kind: Literal["end"] = Field(default="end", description="This step.")
    question: str = Field(description="The question.")
    policy: str = Field(description="Whose weights answered: a run, or a model.")
    policy_version: int = Field(description="Updates behind the weights.")
    mode: Literal["greedy", "sampled"] = Field(description="Decoding.")
    answer: str | None = Field(description="The answer; empty when the policy gave none.")
    queries: tuple[str, ...] = Field(description="What was searched for, in order.")
    stop_reason: StopReason = Field(description="What ended the last turn.")
    num_turns: int = Field(description="Turns.")
    num_prompt_tokens: int = Field(description="Tokens of the prompt, the hindsight block not included.")
    num_completion_tokens: int = Field(description="Tokens that the policy sampled.")
    num_observation_tokens: int = Field(description="Tokens of passages and notices.")
    seconds: float = Field(description="Seconds from the question to the end.")


AskStep = Annotated[BlockStep | WrittenStep | PassagesStep | NoticeStep | EndStep, Field(discriminator="kind")]
