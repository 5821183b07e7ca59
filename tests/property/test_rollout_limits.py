"""The caps of a rollout, over random policies: never a token beyond them, and no rollout that ends before it must."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.records.rollout import Answer, Group, Malformed, Rollout, Search
from sdsearch.protocol.prompting import render_documents, render_frame, render_notice, render_prompt
from sdsearch.sampling.ports import Sampler
from sdsearch.sampling.rollouts import RolloutLimits, RolloutLoop
from sdsearch.sampling.transformers_sampler import TransformersSampler
from tests.support.builders import make_question, make_tokenizer
from tests.support.fakes import FixedRetriever
from tests.support.scripted import OneByOne, Script

TOKENIZER = make_tokenizer()
VOCABULARY = TOKENIZER.get_vocab()
# In random order they make searches, answers and ill-formed turns of every length.
LIKELY = tuple(
    sorted(VOCABULARY[token] for token in ("<search>", "</search>", "<answer>", "</answer>", "a", "<|end|>"))
)
FRAME = render_frame(TOKENIZER, "compact")
PROMPT = len(render_prompt(TOKENIZER, make_question().question, FRAME).token_ids)
PASSAGES = ("The capital of Andorra is Andorra la Vella. " * 3, "River")


def limits() -> st.SearchStrategy[RolloutLimits]:
    """Caps, most of them so narrow that several bind in one rollout."""
    return st.builds(
        RolloutLimits,
        max_searches=st.integers(1, 4),
        max_new_tokens=st.integers(1, 6),
        max_prompt_tokens=st.just(PROMPT),
        max_observation_tokens=st.integers(16, 70),
        max_context_tokens=st.integers(PROMPT + 1, PROMPT + 120),
        num_passages=st.integers(1, 2),
    )


def roll_out(sampler: Sampler, caps: RolloutLimits) -> list[Group]:
    loop = RolloutLoop(TOKENIZER, sampler, FixedRetriever(PASSAGES), caps, FRAME)
    return loop.roll_out([make_question()], run_seed=1, iteration=1, policy_version=0, group_size=4, temperature=1.0)


def tokens_of_reply(rollout: Rollout, turn: int, caps: RolloutLimits) -> int | None:
    """Return how long the reply to a turn is if it gets one; None where the rollout is over without it."""
    action = rollout.turns[turn].action
    if isinstance(action, Answer) or turn >= caps.max_searches:
        return None
    if isinstance(action, Malformed):
        return len(render_notice(TOKENIZER, action.reason).token_ids)
    assert isinstance(action, Search)
    (hits,) = FixedRetriever(PASSAGES).search([action.query], caps.num_passages)
    return len(render_documents(TOKENIZER, hits, caps.max_observation_tokens).token_ids)


@given(st.integers(0, 10**6), limits())
def test_a_rollout_keeps_every_cap_and_ends_at_the_first_that_it_meets(salt: int, caps: RolloutLimits) -> None:
    (group,) = roll_out(OneByOne(Script(salt, LIKELY, len(TOKENIZER)), TOKENIZER), caps)
    for rollout in group.rollouts:
        num_tokens = len(group.prompt_token_ids)
        for place, turn in enumerate(rollout.turns):
            room = caps.max_context_tokens - num_tokens
            assert 1 <= len(turn.generation.token_ids) <= min(caps.max_new_tokens, room)
            if turn.generation.stop_reason == "length":
                assert len(turn.generation.token_ids) == min(caps.max_new_tokens, room)
            num_tokens += len(turn.generation.token_ids)
            reply = tokens_of_reply(rollout, place, caps)
            goes_on = reply is not None and num_tokens + reply < caps.max_context_tokens
            assert (turn.observation is not None) == goes_on
            assert (place + 1 < len(rollout.turns)) == goes_on
            num_tokens += len(turn.observation.token_ids) if turn.observation else 0
        assert len(rollout.queries) <= caps.max_searches
        assert num_tokens == len(group.prompt_token_ids) + len(rollout.token_ids) <= caps.max_context_tokens


@given(st.integers(0, 10**6), limits())
def test_the_transformers_sampler_rolls_out_what_one_rollout_alone_gives(salt: int, caps: RolloutLimits) -> None:
    script = Script(salt, LIKELY, len(TOKENIZER))
    groups = roll_out(TransformersSampler(script.model, TOKENIZER), caps)
    alone = roll_out(OneByOne(script, TOKENIZER), caps)
    assert [_without_logprobs(group) for group in groups] == [_without_logprobs(group) for group in alone]


def _without_logprobs(group: Group) -> list[dict]:
    dumps = [rollout.model_dump() for rollout in group.rollouts]
    for dump in dumps:
        for turn in dump["turns"]:
            del turn["generation"]["sampled_logprobs"]
    return dumps
