"""Demonstrations as tokens: what is trained on, what it costs, and the steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from random import Random

import pytest
import torch

from schemas.records.hindsight import HindsightAttempt
from schemas.records.passage import Passage, SearchHit
from schemas.records.rollout import Answer, Search
from sdsearch.credit.block_text import encode_block
from sdsearch.protocol.prompting import render_frame, render_prompt
from sdsearch.protocol.tokens import decode
from sdsearch.training.supervised import (
    Demonstration,
    Layout,
    bucket,
    demonstrate,
    learning_rate_at,
    take_step,
    weighted_loss,
)
from tests.support.builders import make_model
from tests.support.protocols import ROWS, ProtocolRow

EVERY = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
HITS = [SearchHit(passage=Passage(id="1", title="Peru", text="Lima is the capital of Peru."), score=1.0)]
ATTEMPTS = [HindsightAttempt(rollout_index=0, label="CORRECT", contents=("capital of Peru <tool_call>",))]
Turns = tuple[tuple[str, Sequence[SearchHit] | None], ...]


def layout_of(row: ProtocolRow) -> Layout:
    own, tokenizer = row.open(), row.make()
    return Layout(tokenizer, own, render_frame(tokenizer, "compact", own), 300, 400)


def turns_of(layout: Layout) -> Turns:
    own, tokenizer = layout.protocol, layout.tokenizer
    end = own.turn_end(tokenizer)
    search = own.write(tokenizer, Search(query="capital of Peru"), "I search.") + end
    return (search, HITS), (own.write(tokenizer, Answer(answer="Lima"), "I know.") + end, None)


@EVERY
@pytest.mark.parametrize("attempts", [None, ATTEMPTS], ids=["plain", "block"])
def test_what_the_policy_writes_is_trained_on_and_nothing_else(
    row: ProtocolRow, attempts: list[HindsightAttempt] | None
) -> None:
    layout = layout_of(row)
    turns = turns_of(layout)
    shown = demonstrate(layout, "Which city?", attempts, turns)
    weighed = [token for token, weight in zip(shown.token_ids, shown.weights, strict=True) if weight]
    assert decode(layout.tokenizer, weighed) == "".join(text for text, _ in turns)
    assert set(shown.weights) == {0.0, 1.0}
    opening, closing = row.around
    whole = decode(layout.tokenizer, shown.token_ids)
    asked, _, replied = whole.partition(turns[0][0])
    assert "Which city?" in asked
    assert replied.startswith(opening)
    assert "Lima is the capital of Peru." in replied
    assert replied.endswith(f"{closing}{turns[1][0]}")


@EVERY
def test_a_block_stands_where_the_teacher_reads_it(row: ProtocolRow) -> None:
    layout = layout_of(row)
    plain, shown = (demonstrate(layout, "Which city?", each, turns_of(layout)) for each in (None, ATTEMPTS))
    block = encode_block(layout.tokenizer, ATTEMPTS, layout.max_block_tokens, tags=layout.protocol.tags).token_ids
    head = len(render_prompt(layout.tokenizer, "Which city?", layout.frame, layout.protocol).head)
    assert shown.token_ids == (*plain.token_ids[:head], *block, *plain.token_ids[head:])
    assert sum(shown.weights) == sum(plain.weights)


def demonstrations() -> list[Demonstration]:
    """Of 5 to 12 tokens, of which every third has a weight, not all of them the same."""
    draw, made = Random(1), []
    for length in (5, 9, 7, 12):
        ids = tuple(draw.randrange(2, 100) for _ in range(length))
        made.append(Demonstration(ids, tuple((place % 3 == 1) * (0.5 + place % 2) for place in range(length))))
    return made


def test_the_loss_is_the_mean_of_what_each_weighed_token_costs() -> None:
    model, made = make_model(), demonstrations()
    costs, weights = 0.0, 0.0
    for one in made:
        logits = model(input_ids=torch.tensor([one.token_ids])).logits[0].detach().double()
        for place, (token, weight) in enumerate(zip(one.token_ids, one.weights, strict=True)):
            costs -= weight * float(torch.log_softmax(logits[place - 1], -1)[token]) if weight else 0.0
            weights += weight
    (batch,) = bucket(made, 100, Random(0))
    assert float(weighted_loss(model, batch).detach()) == pytest.approx(costs / weights, rel=1e-5)


def test_batches_hold_every_demonstration_once_and_no_more_tokens_than_asked() -> None:
    made = demonstrations() * 5
    batches = bucket(made, 30, Random(0))
    assert all(batch.ids_BT.numel() <= 30 for batch in batches)
    held = [tuple(row[row > 0].tolist()) for batch in batches for row in batch.ids_BT]
    assert sorted(held) == sorted(one.token_ids for one in made)
    assert sum(float(batch.weights_BT.sum()) for batch in batches) == sum(sum(one.weights) for one in made)


def test_a_step_has_its_rate_and_a_gradient_of_at_most_one() -> None:
    (batch,) = bucket(demonstrations(), 100, Random(0))
    model = make_model()
    before = copy.deepcopy(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    assert take_step(model, optimiser, batch, 0.1) == pytest.approx(float(weighted_loss(before, batch).detach()))
    loss = weighted_loss(before, batch)
    loss.backward()
    squares = sum(float(p.grad.square().sum()) for p in before.parameters() if p.grad is not None)
    assert squares > 1, "the test needs a gradient that is clipped"
    pairs = zip(before.parameters(), model.parameters(), strict=True)
    assert sum(float((old - new).detach().square().sum()) for old, new in pairs) ** 0.5 == pytest.approx(0.1, rel=1e-3)
    assert float(weighted_loss(model, batch).detach()) < float(loss.detach())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [learning_rate_at(step, 100, 2.0, 10) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert set(rates[10:51]) == {2.0}
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[75] == pytest.approx(2.0 * (0.02 + 0.98 / 2))
    assert rates[-1] == pytest.approx(0.04, abs=0.01)
