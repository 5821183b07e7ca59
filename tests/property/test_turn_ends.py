"""Turns end where they end: every sampler against sampling one conversation at a time, over random scripts of stops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sdsearch.sampling.ports import SampledTurn, Sampler, TurnRequest
from sdsearch.sampling.statistics import SamplingStatistics
from sdsearch.sampling.stopping import TurnEnds
from sdsearch.sampling.transformers_sampler import TransformersSampler
from sdsearch.sampling.vllm_turns import EventLoopThread, OverlappingSampler
from sdsearch.seeds import derive_seed
from tests.support.scripted import END_IDS, NO_TEXT, PIECES, OneByOne, Script, ScriptedEngine, make_pieces_tokenizer

TOKENIZER = make_pieces_tokenizer()
STOPS = (*END_IDS, PIECES.index("</search>"), PIECES.index("</answer>"))
TOKENS = st.integers(1, NO_TEXT)


@dataclass(frozen=True)
class Turn:
    """What the environment says before a turn, and how many tokens the turn may have."""

    tokens: tuple[int, ...]
    limit: int
    greedy: bool


@dataclass
class Environment:
    """Replies to each conversation by its own list of turns, and keeps what it was told."""

    conversations: Sequence[Sequence[Turn]]
    seed: int
    told: dict[str, list[SampledTurn]] = field(default_factory=dict)

    def openings(self) -> list[TurnRequest]:
        """Return the first request of each conversation."""
        return [self._request(str(place), 0) for place in range(len(self.conversations))]

    def respond(self, turns: Sequence[SampledTurn]) -> list[TurnRequest]:
        """Answer the ended turns of those conversations that have one more."""
        requests = []
        for turn in turns:
            told = self.told.setdefault(turn.key, [])
            told.append(turn)
            if len(told) < len(self.conversations[int(turn.key)]):
                requests.append(self._request(turn.key, len(told)))
        return requests

    def _request(self, key: str, number: int) -> TurnRequest:
        turn = self.conversations[int(key)][number]
        seed = derive_seed(self.seed, key, number)
        return TurnRequest(key, turn.tokens, seed, turn.limit, 0.0 if turn.greedy else 0.8)


def scripts() -> st.SearchStrategy[Script]:
    """Scripts in which some tokens are likely, at least one of which ends a turn."""
    likely = st.tuples(st.sampled_from(STOPS), st.sets(TOKENS, max_size=7))
    return st.builds(
        lambda salt, chosen: Script(salt, tuple(sorted({chosen[0], *chosen[1]})), NO_TEXT + 1),
        st.integers(0, 10**6),
        likely,
    )


def environments() -> st.SearchStrategy[list[list[Turn]]]:
    """Conversations of a few turns; some openings are the same, and most turns have little room."""
    opening = st.sampled_from([(3,), (3, 11), (11, 11, 3, 11)])
    later = st.builds(Turn, st.lists(TOKENS, min_size=1, max_size=5).map(tuple), st.integers(1, 6), st.booleans())
    first = st.builds(Turn, opening, st.integers(1, 6), st.booleans())
    return st.lists(st.builds(lambda a, b: [a, *b], first, st.lists(later, max_size=3)), min_size=1, max_size=7)


def told(sampler: Sampler, conversations: Sequence[Sequence[Turn]]) -> list[SampledTurn]:
    """Return what the sampler hands to the environment, conversation by conversation."""
    environment = Environment(conversations, seed=3)
    sampler.converse(environment.openings(), environment.respond)
    return [turn for _, turns in sorted(environment.told.items()) for turn in turns]


def assert_same(sampler: Sampler, script: Script, conversations: Sequence[Sequence[Turn]]) -> None:
    turns, expected = told(sampler, conversations), told(OneByOne(script, TOKENIZER), conversations)
    assert [(t.key, t.token_ids, t.stop_reason) for t in turns] == [
        (t.key, t.token_ids, t.stop_reason) for t in expected
    ]
    for turn, like in zip(turns, expected, strict=True):
        assert turn.logprobs == pytest.approx(like.logprobs, abs=1e-4)


ONE_TOKEN = [[Turn((3,), 1, False)] * 3] * 5
STOPS_AT_ONCE = Script(0, STOPS, NO_TEXT + 1)


@given(scripts(), environments())
@example(STOPS_AT_ONCE, [[Turn((3,), 6, False)] * 4] * 3)
@example(Script(0, (11,), NO_TEXT + 1), ONE_TOKEN)
def test_the_transformers_sampler_samples_what_one_conversation_alone_gives(
    script: Script, conversations: list[list[Turn]]
) -> None:
    assert_same(TransformersSampler(script.model, TOKENIZER), script, conversations)


@given(scripts(), environments(), st.integers(0, 3))
@example(STOPS_AT_ONCE, [[Turn((3,), 6, False)] * 4] * 3, 2)
@example(Script(0, (11,), NO_TEXT + 1), ONE_TOKEN, 0)
def test_the_overlapping_sampler_samples_what_one_conversation_alone_gives(
    loop: EventLoopThread, script: Script, conversations: list[list[Turn]], overrun: int
) -> None:
    ends = TurnEnds.of(script.model, TOKENIZER)
    engine = ScriptedEngine(script, TOKENIZER, overrun)
    sampler = OverlappingSampler(engine, loop, ends, SamplingStatistics())
    assert_same(sampler, script, conversations)


@pytest.fixture(scope="module")
def loop() -> Iterator[EventLoopThread]:
    thread = EventLoopThread()
    yield thread
    thread.close()


@pytest.mark.parametrize("stop", [*STOPS, None], ids=[*(PIECES[stop] for stop in STOPS), "one token of room"])
@pytest.mark.parametrize("room", [1, 2])
def test_a_turn_that_ends_with_its_first_token_has_one_token(stop: int | None, room: int) -> None:
    script = Script(0, (stop or PIECES.index("a"),), NO_TEXT + 1)
    conversations = [[Turn((3, 11), room if stop else 1, False)] * 3] * 2
    for sampler in (TransformersSampler(script.model, TOKENIZER), OneByOne(script, TOKENIZER)):
        assert [len(turn.token_ids) for turn in told(sampler, conversations)] == [1] * 6
