"""Where a turn ends; one rule for every sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from schemas.records.rollout import StopReason
from sdsearch.protocol.parsing import TAG_PROTOCOL
from sdsearch.protocol.tokens import decode


@dataclass(frozen=True)
class TurnEnds:
    """A turn ends with an end-of-turn token, with the token that completes a closing tag, or at its limit."""

    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]
    may_close: frozenset[int]  # Tokens whose text holds the last character of a stop: no other completes one.
    stops: Mapping[str, StopReason]  # What ends a turn when it is written, and what it is.

    @staticmethod
    def of(
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        stops: Mapping[str, StopReason] = TAG_PROTOCOL.stops,
    ) -> TurnEnds:
        """Return the rule for a model folder: its generation settings and its tokenizer say what ends a turn."""
        configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        end_ids = frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
        last = {stop[-1] for stop in stops}
        may_close = frozenset(
            token_id for token, token_id in tokenizer.get_vocab().items() if any(c in token for c in last)
        )
        return TurnEnds(tokenizer, end_ids, may_close, stops)

    def reason(self, token_ids: Sequence[int], max_new_tokens: int) -> StopReason | None:
        """Return why the turn ends with the last of its tokens so far, None when it goes on."""
        if token_ids[-1] in self.end_ids:
            return "end_of_turn"
        if token_ids[-1] in self.may_close:
            # The whole turn, as its action is read: a tag may be any number of tokens, some of them without a text.
            text = decode(self.tokenizer, token_ids)
            closed = {text.find(tag): reason for tag, reason in self.stops.items() if tag in text}
            if closed:
                return closed[min(closed)]
        return "length" if len(token_ids) >= max_new_tokens else None

    def first_end(self, token_ids: Sequence[int], max_new_tokens: int) -> tuple[int, StopReason] | None:
        """Return how many of the tokens belong to the turn and why it ends there, None when it does not end."""
        for count in range(1, len(token_ids) + 1):
            if (reason := self.reason(token_ids[:count], max_new_tokens)) is not None:
                return count, reason
        return None
