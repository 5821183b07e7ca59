"""Short conversations on which ways to compute a model are compared: two turns each, two of three are siblings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from sdsearch.sampling.ports import SampledTurn, Sampler, TurnRequest

_SEED: Final = 20_260_518
_TURN: Final = 6  # sampled tokens of a turn, at most
_REPLIES: Final = (5, 7, 6)
_CONTINUED: Final = 2 * _TURN + max(_REPLIES)
_SHORTEST_CONTEXT: Final = 24
# What configurations call a number of tokens from which on a model computes otherwise.
_WINDOWS: Final = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size", "index_topk")
_SWITCHING_ROPE: Final = ("longrope", "dynamic")


@dataclass(frozen=True)
class Conversation:
    """A context, then a turn, a reply and a turn; `logprobs` are the sampler's, None where it sampled nothing."""

    context: tuple[int, ...]
    continued: tuple[int, ...]
    logprobs: tuple[float | None, ...]


def num_trial_tokens(config: Any, longest: int) -> int:
    """Return the length of a conversation that is longer than every window of the model, at most `longest`."""
    wanted = max([_SHORTEST_CONTEXT, *(window + 2 for window in _windows(config.get_text_config()))])
    return min(longest, wanted + _CONTINUED)


def _windows(config: Any) -> Iterator[int]:
    for name in _WINDOWS:
        if isinstance(value := getattr(config, name, None), int):
            yield value
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, Mapping) and rope.get("rope_type") in _SWITCHING_ROPE:
        yield int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)


def write_conversations(token_ids: Sequence[int], num_tokens: int) -> list[Conversation]:
    """Return conversations of at most `num_tokens` of these tokens, which no sampler wrote."""
    conversations = []
    for number, context in enumerate(_contexts(token_ids, num_tokens)):
        turn = _cut(token_ids, 5 * number, _TURN)
        continued = (*turn, *_reply(token_ids, number), *reversed(turn))
        conversations.append(Conversation(context, continued, (None,) * len(continued)))
    return conversations


def sample_conversations(sampler: Sampler, token_ids: Sequence[int], num_tokens: int) -> list[Conversation]:
    """Return conversations of at most `num_tokens` that the sampler wrote the turns of, by its own path."""
    contexts = _contexts(token_ids, num_tokens)
    turns: list[list[SampledTurn]] = [[] for _ in contexts]

    def respond(ended: Sequence[SampledTurn]) -> list[TurnRequest]:
        for turn in ended:
            turns[int(turn.key)].append(turn)
        first = [int(turn.key) for turn in ended if len(turns[int(turn.key)]) == 1]
        return [TurnRequest(str(n), _reply(token_ids, n), _SEED + n + 10, _TURN, 1.0) for n in first]

    openings = [TurnRequest(str(n), context, _SEED + n, _TURN, 1.0) for n, context in enumerate(contexts)]
    sampler.converse(openings, respond)
    return [
        Conversation(
            context,
            (*first.token_ids, *_reply(token_ids, number), *second.token_ids),
            (*first.logprobs, *(None for _ in _reply(token_ids, number)), *second.logprobs),
        )
        for number, (context, (first, second)) in enumerate(zip(contexts, turns, strict=True))
    ]


def _contexts(token_ids: Sequence[int], num_tokens: int) -> list[tuple[int, ...]]:
    """Return three contexts, the first two the same, drawn from the tokens."""
    length = max(2, num_tokens - _CONTINUED)
    generator = torch.Generator().manual_seed(_SEED)
    drawn = torch.randint(len(token_ids), (length + length // 2,), generator=generator).tolist()
    ids = tuple(token_ids[position] for position in drawn)
    return [ids[:length], ids[:length], ids[length:]]


def _reply(token_ids: Sequence[int], number: int) -> tuple[int, ...]:
    return _cut(token_ids, 7 * number + 3, _REPLIES[number])


def _cut(token_ids: Sequence[int], start: int, num_tokens: int) -> tuple[int, ...]:
    return tuple(token_ids[(start + position) % len(token_ids)] for position in range(num_tokens))
