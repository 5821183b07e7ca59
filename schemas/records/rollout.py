"""Rollouts: what the policy sampled and what the environment replied, token by token.

Who wrote a token is decided when it is appended and never inferred later: a generation holds the
policy's tokens, an observation the environment's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.base import Record
from schemas.records.passage import SearchHit
from schemas.records.question import Question

StopReason = Literal["search_closed", "answer_closed", "end_of_turn", "length"]
Logprob = Annotated[float, Field(allow_inf_nan=False)]
MalformedReason = Literal[
    "no_action", "not_opened", "unreadable", "empty_query", "empty_answer", "unknown_tool", "two_calls"
]


class Search(Record):
    """The turn asks for documents."""

    kind: Literal["search"] = Field(default="search", description="This action.")
    query: str = Field(min_length=1, description="What is searched for.")


class Answer(Record):
    """The turn answers the question and ends the rollout."""

    kind: Literal["answer"] = Field(default="answer", description="This action.")
    answer: str = Field(min_length=1, description="The answer.")


class Malformed(Record):
    """The turn is neither a search nor an answer; it gets a notice and is used up."""

    kind: Literal["malformed"] = Field(default="malformed", description="This action.")
    reason: MalformedReason = Field(description="What is ill-formed.")


Action = Annotated[Search | Answer | Malformed, Field(discriminator="kind")]


class Generation(Record):
    """The tokens that the policy sampled in one turn."""

    token_ids: tuple[int, ...] = Field(min_length=1, description="Tokens as the policy sampled them.")
    sampled_logprobs: tuple[Logprob | None, ...] = Field(
        description="The sampler's log-probability of each token, nats; null where it gave none."
    )
    text: str = Field(description="What the policy wrote, special tokens kept.")
    stop_reason: StopReason = Field(description="search_closed, answer_closed, end_of_turn or length.")
    query_positions: tuple[int, ...] = Field(
        description="Offsets into token_ids of the tokens wholly within the query's own characters."
    )

    @model_validator(mode="after")
    def _aligned(self) -> Generation:
        if len(self.sampled_logprobs) != len(self.token_ids):
            raise ValueError("one log-probability per sampled token is needed")
        if any(not 0 <= position < len(self.token_ids) for position in self.query_positions):
            raise ValueError("query_positions must be offsets into token_ids")
        return self


class Observation(Record):
    """The tokens that the environment appended after a generation."""

    kind: Literal["documents", "notice"] = Field(
        description="documents: what a search found; notice: a line that says what was ill-formed."
    )
    token_ids: tuple[int, ...] = Field(description="Its tokens; the policy is never trained on them.")
    text: str = Field(description="What the environment replied.")
    hits: tuple[SearchHit, ...] = Field(description="What the search returned, best first; empty for a notice.")
    num_tokens_cut: int = Field(description="Document tokens left out to keep to the observation's length.")


class Turn(Record):
    """One generation and the environment's reply; a rollout's last turn has no observation."""

    generation: Generation = Field(description="What the policy wrote.")
    action: Action = Field(description="What that asks for.")
    observation: Observation | None = Field(description="What the environment replied; empty on the last turn.")

    @property
    def searched_query(self) -> str | None:
        """What the turn searched for: the query of a search whose documents entered the rollout, else None.

        A query on the last permitted turn is never sent, and documents that do not fit the context are not shown.
        """
        return self.action.query if isinstance(self.action, Search) and self.observation is not None else None

    @property
    def written_query(self) -> str | None:
        """The query that it wrote, whether it was sent or not; None where it wrote none."""
        return self.action.query if isinstance(self.action, Search) else None

    @property
    def num_tokens(self) -> int:
        """Tokens of the generation and the environment's reply."""
        return len(self.generation.token_ids) + (len(self.observation.token_ids) if self.observation else 0)

    @property
    def hits(self) -> tuple[SearchHit, ...]:
        """What its search returned, best first; empty where it did not search."""
        return self.observation.hits if self.observation else ()


class Rollout(Record):
    """One whole attempt at a question."""

    id: str = Field(description="Group and place among the siblings.")
    group_id: str = Field(description="Its group.")
    index: int = Field(ge=0, description="Place among its siblings, in sampling order.")
    turns: tuple[Turn, ...] = Field(min_length=1, description="Its turns, in order.")

    @property
    def queries(self) -> tuple[str, ...]:
        """What was searched for, in order."""
        return tuple(query for turn in self.turns if (query := turn.searched_query) is not None)

    @property
    def written_queries(self) -> tuple[str, ...]:
        """What was searched for, and the query of a last turn that searched for nothing (see Turn.searched_query)."""
        return tuple(query for turn in self.turns if (query := turn.written_query) is not None)

    @property
    def answer(self) -> str | None:
        """The final answer, None when the rollout ended without one."""
        action = self.turns[-1].action
        return action.answer if isinstance(action, Answer) else None

    @property
    def valid_format(self) -> bool:
        """True when no turn was malformed and the rollout ended with an answer."""
        return self.answer is not None and not any(isinstance(turn.action, Malformed) for turn in self.turns)

    def num_tokens_before(self, turn: int) -> int:
        """How many of its tokens the policy has before it when it begins a turn."""
        return sum(each.num_tokens for each in self.turns[:turn])

    def spans(self) -> Iterator[tuple[Literal["policy", "environment"], tuple[int, ...]]]:
        """Yield (author, token ids) in the order in which the tokens were appended."""
        for turn in self.turns:
            yield "policy", turn.generation.token_ids
            if turn.observation is not None:
                yield "environment", turn.observation.token_ids

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens after the prompt."""
        return tuple(chain.from_iterable(tokens for _, tokens in self.spans()))

    @property
    def completion_positions(self) -> tuple[int, ...]:
        """Offsets into token_ids of the tokens that the policy sampled."""
        positions: list[int] = []
        start = 0
        for author, tokens in self.spans():
            if author == "policy":
                positions.extend(range(start, start + len(tokens)))
            start += len(tokens)
        return tuple(positions)

    @property
    def query_positions(self) -> tuple[int, ...]:
        """Offsets into token_ids of the tokens of `queries`."""
        return self._query_positions(unsent=False)

    @property
    def written_query_positions(self) -> tuple[int, ...]:
        """Offsets into token_ids of the tokens of `written_queries`."""
        return self._query_positions(unsent=True)

    def _query_positions(self, unsent: bool) -> tuple[int, ...]:
        positions: list[int] = []
        start = 0
        for turn in self.turns:
            if unsent or turn.searched_query is not None:
                positions.extend(start + offset for offset in turn.generation.query_positions)
            start += turn.num_tokens
        return tuple(positions)

    @property
    def sampled_logprobs(self) -> tuple[float | None, ...]:
        """The sampler's log-probabilities, one per completion position, nats."""
        return tuple(logprob for turn in self.turns for logprob in turn.generation.sampled_logprobs)


class Group(Record):
    """The sibling rollouts of one question in one iteration."""

    id: str = Field(description="Iteration and question; no other group of the run has it.")
    iteration: int = Field(description="Iteration of the run.")
    policy_version: int = Field(description="Updates behind the weights that sampled it.")
    question: Question = Field(description="The question that all siblings answer.")
    prompt_token_ids: tuple[int, ...] = Field(min_length=1, description="Tokens of the prompt.")
    block_offset: int = Field(
        ge=0,
        description="Where in the prompt the teacher's hindsight block goes, in tokens: the start of the task prompt.",
    )
    rollouts: tuple[Rollout, ...] = Field(min_length=1, description="The siblings, in sampling order.")
    replacement: int = Field(
        default=0,
        ge=0,
        description="The round of grpo.filter 'resample' in which its question was drawn; 0: the iteration's own.",
    )
