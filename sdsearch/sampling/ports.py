"""The port between the rollout loop and whatever generates tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.records.rollout import StopReason, Turn


@dataclass(frozen=True)
class TurnRequest:
    """Append `token_ids` to the conversation `key`, then generate one turn.

    The first request of a key opens the conversation with its prompt; later ones bring the environment's reply.
    """

    key: str
    token_ids: tuple[int, ...]
    seed: int
    max_new_tokens: int
    temperature: float  # 0 is greedy


@dataclass(frozen=True)
class SampledTurn:
    """What was generated: ids as sampled, and the log-probability of each (nats, at the request's temperature).

    A log-probability that the sampler could not tell is None; training takes the ratio of such a token as 1.
    """

    key: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    stop_reason: StopReason


class RolloutListener(Protocol):
    """Is told of rollouts while they happen; it changes nothing of them. Ids are those of the rollouts."""

    def token_sampled(self, rollout_id: str, token_id: int) -> None:
        """The policy wrote a token. A sampler that learns of whole turns alone, such as an engine's, never says so."""
        ...

    def turn_ended(self, rollout_id: str, turn: Turn, *, ends_rollout: bool) -> None:
        """A turn is over, its action read and the environment's reply there."""
        ...


class NoListener:
    """A `RolloutListener` that listens to nothing."""

    def token_sampled(self, rollout_id: str, token_id: int) -> None:
        """Do nothing."""

    def turn_ended(self, rollout_id: str, turn: Turn, *, ends_rollout: bool) -> None:
        """Do nothing."""


Respond = Callable[[Sequence[SampledTurn]], Sequence[TurnRequest]]


class Sampler(Protocol):
    """A generator of turns that keeps the conversations' state (KV cache) between them."""

    def converse(self, openings: Sequence[TurnRequest], respond: Respond) -> None:
        """Generate until no conversation goes on.

        Whenever turns have ended they are handed to `respond`, which answers with the requests of those
        conversations that continue. A sampler need not wait for all conversations to end a turn.
        """
        ...
