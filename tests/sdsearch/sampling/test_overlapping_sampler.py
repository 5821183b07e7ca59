"""Conversations over an engine: no barrier between turns, histories, ends of turns, statistics, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

import pytest

from sdsearch.sampling.ports import SampledTurn, TurnRequest
from sdsearch.sampling.statistics import SamplingStatistics
from sdsearch.sampling.stopping import TurnEnds
from sdsearch.sampling.vllm_turns import EngineTurn, EventLoopThread, OverlappingSampler, Prompt, SamplerError
from tests.property.test_query_tokens import byte_level_bpe
from tests.support.builders import make_model, make_tokenizer

TOKENIZER = make_tokenizer()
ENDS = TurnEnds.of(make_model(), TOKENIZER)


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text, add_special_tokens=False))


class ScriptedEngine:
    """Answers prompts with fixed tokens; turns of a key in `slow` wait until they are let go."""

    def __init__(self, answer: Callable[[Prompt], tuple[int, ...]], slow: str = "") -> None:
        self._answer = answer
        self._slow = slow
        self.go = asyncio.Event()
        self.prompts: list[Prompt] = []
        self.cancelled: list[str] = []

    async def generate(self, prompt: Prompt) -> EngineTurn:
        self.prompts.append(prompt)
        if prompt.request.key == self._slow:
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled.append(prompt.request.key)
                raise
        token_ids = self._answer(prompt)
        return EngineTurn(token_ids, (-1.0,) * len(token_ids), len(prompt.token_ids) // 2, "stop")


@pytest.fixture
def loop() -> Iterator[EventLoopThread]:
    thread = EventLoopThread()
    yield thread
    thread.close()


def request(key: str, text: str, limit: int = 40) -> TurnRequest:
    return TurnRequest(key, ids(text), 7, limit, 1.0)


def sampler(engine: ScriptedEngine, loop: EventLoopThread) -> tuple[OverlappingSampler, SamplingStatistics]:
    statistics = SamplingStatistics()
    return OverlappingSampler(engine, loop, ENDS, statistics), statistics


def test_a_rollout_goes_on_while_its_sibling_still_generates(loop: EventLoopThread) -> None:
    engine = ScriptedEngine(lambda prompt: ids("<search> river </search>"), slow="slow")
    batches: list[list[str]] = []

    def respond(turns: Sequence[SampledTurn]) -> list[TurnRequest]:
        batches.append([turn.key for turn in turns])
        going = [turn.key for turn in turns if turn.key != "slow" and len(engine.prompts) < 4]
        if not going and "slow" not in batches[-1]:
            loop.run(let_go(engine))
        return [request(key, "<documents> tree </documents>") for key in going]

    overlapping, statistics = sampler(engine, loop)
    overlapping.converse([request("slow", "Question"), request("fast", "Question")], respond)
    assert batches[:-1] == [["fast"]] * (len(batches) - 1)
    assert batches[-1] == ["slow"]
    assert len(batches) >= 3, "the fast one had further turns before the slow one's first had ended"
    assert statistics.num_turns == len(engine.prompts)


async def let_go(engine: ScriptedEngine) -> None:
    engine.go.set()


def test_a_prompt_holds_everything_that_was_said(loop: EventLoopThread) -> None:
    engine = ScriptedEngine(lambda prompt: ids("<search> river </search>"))

    def respond(turns: Sequence[SampledTurn]) -> list[TurnRequest]:
        return [request("a", "<documents> tree </documents>")] if len(engine.prompts) < 3 else []

    sampler(engine, loop)[0].converse([request("a", "Question")], respond)
    turn, reply = ids("<search> river </search>"), ids("<documents> tree </documents>")
    histories = [prompt.token_ids for prompt in engine.prompts]
    assert histories == [ids("Question"), ids("Question") + turn + reply, ids("Question") + (turn + reply) * 2]


def test_turns_that_end_together_are_one_batch(loop: EventLoopThread) -> None:
    engine = ScriptedEngine(lambda prompt: ids("<answer> tree </answer>"))
    batches: list[int] = []

    def respond(turns: Sequence[SampledTurn]) -> list[TurnRequest]:
        batches.append(len(turns))
        return []

    sampler(engine, loop)[0].converse([request(str(number), "Question") for number in range(20)], respond)
    assert sum(batches) == 20
    assert len(batches) < 5


@pytest.mark.parametrize(
    ("text", "limit", "kept", "reason"),
    [
        ("<search> river </search>", 40, "<search> river </search>", "search_closed"),
        ("<answer> tree </answer> river", 40, "<answer> tree </answer>", "answer_closed"),
        ("tree<|end|>", 40, "tree<|end|>", "end_of_turn"),
        ("tree river", len(ids("tree river")), "tree river", "length"),
    ],
)
def test_where_a_turn_ends(loop: EventLoopThread, text: str, limit: int, kept: str, reason: str) -> None:
    turns: list[SampledTurn] = []
    engine = ScriptedEngine(lambda prompt: ids(text))
    sampler(engine, loop)[0].converse([request("a", "Question", limit)], lambda batch: turns.extend(batch) or [])
    assert [(turn.token_ids, turn.stop_reason) for turn in turns] == [(ids(kept), reason)]
    assert len(turns[0].logprobs) == len(turns[0].token_ids)


def test_a_token_that_goes_on_after_the_tag_is_kept_whole() -> None:
    tokenizer = byte_level_bpe()
    beyond = [i for token, i in tokenizer.get_vocab().items() if token.startswith("</search>") and len(token) > 9]
    assert beyond, "this tokenizer has no token that goes on after the tag"
    ends = TurnEnds.of(make_model(), tokenizer)
    for token in beyond:
        turn = (*tokenizer.encode("<search>river", add_special_tokens=False), token)
        assert ends.first_end((*turn, *turn), 40) == (len(turn), "search_closed")


def test_an_engine_that_ends_a_turn_for_its_own_reasons_is_an_error(loop: EventLoopThread) -> None:
    engine = ScriptedEngine(lambda prompt: ids("tree river"))
    with pytest.raises(SamplerError, match=r"ended a turn of 'a' after \d+ of 40 tokens .*stop"):
        sampler(engine, loop)[0].converse([request("a", "Question")], lambda turns: [])


def test_when_the_environment_fails_the_other_turns_are_cancelled(loop: EventLoopThread) -> None:
    engine = ScriptedEngine(lambda prompt: ids("<search> river </search>"), slow="slow")

    def respond(turns: Sequence[SampledTurn]) -> list[TurnRequest]:
        raise ConnectionError("the retriever is down")

    overlapping, _ = sampler(engine, loop)
    with pytest.raises(ConnectionError, match="retriever is down"):
        overlapping.converse([request("slow", "Question"), request("fast", "Question")], respond)
    loop.run(asyncio.sleep(0))
    assert engine.cancelled == ["slow"]


def test_statistics_integrate_over_time() -> None:
    now = iter([0.0, 2.0, 3.0, 7.0, 8.0])
    statistics = SamplingStatistics(clock=lambda: next(now))
    statistics.started(3)  # At 0: three turns.
    statistics.ended()  # At 2: two.
    statistics.ended()  # At 3: one.
    statistics.ended()  # At 7: none.
    statistics.read(10, 4, 6)
    statistics.stopped()  # At 8.
    assert (statistics.seconds, statistics.stalled_s) == (8.0, 1.0)
    assert statistics.mean_concurrency == pytest.approx((3 * 2 + 2 * 1 + 1 * 4) / 8)
    assert (statistics.cache_hit_share, statistics.tokens_per_s) == (0.4, 0.75)
