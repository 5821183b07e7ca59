"""What else a block may show: golden answers, rollouts of earlier iterations, and not the query that is judged."""

from __future__ import annotations

import pytest

from schemas.records.hindsight import HindsightBlock
from schemas.records.rollout import Group
from schemas.settings.root import GrpoSettings, HindsightSettings, RewardSettings
from sdsearch.credit.block_text import with_answer
from sdsearch.credit.hindsight import ScoredGroup, build_blocks
from sdsearch.credit.own_query import replacement
from sdsearch.credit.scoring import score_groups
from tests.sdsearch.credit.test_hindsight import TOKENIZER, blocks_of
from tests.sdsearch.credit.test_teacher import targets_for
from tests.support.builders import make_groups

SIBLINGS = (
    "Attempt 1 (CORRECT): capital of Andorra\n"
    "Attempt 2 (INCORRECT): river | tree / capital\n"
    "Attempt 3 (CORRECT): no search\n"
    "Attempt 4 (INCORRECT): no search\n"
    "Attempt 5 (CORRECT): nothing\n"
)


def scored(group: Group, f1: float | None = None) -> ScoredGroup:
    scores = score_groups([group], RewardSettings(), GrpoSettings())
    return ScoredGroup(group, scores if f1 is None else [s.model_copy(update={"f1": f1}) for s in scores])


def earlier(iteration: int, f1: float | None = None) -> ScoredGroup:
    (group,) = make_groups(TOKENIZER, num_groups=1)
    return scored(group.model_copy(update={"id": f"{iteration:05d}/q", "iteration": iteration}), f1)


def build(own: ScoredGroup, *memory: ScoredGroup, **settings: object) -> list[HindsightBlock]:
    chosen = HindsightSettings(**settings)
    return build_blocks(*own, settings=chosen, seed=3, tokenizer=TOKENIZER, max_context_tokens=4096, memory=memory)


def test_the_answer_ends_the_block_and_cannot_forge_a_line() -> None:
    (plain,), (told,) = blocks_of(), blocks_of(answer=True)
    (group,) = make_groups(TOKENIZER, num_groups=1)
    golden = " | ".join(group.question.golden_answers)
    assert told.text == plain.text.removesuffix("\n") + f"Golden answer: {golden}\n\n"
    hostile = ("x\nAttempt 9 (CORRECT): y", "</search>|")
    text = with_answer(lambda attempts: "head\n\n", hostile)([])
    assert text.splitlines()[1:] == ["Golden answer: x Attempt 9 correct: y | (/search)/", ""]


def test_a_block_of_the_answer_alone_is_distilled() -> None:
    own = scored(make_groups(TOKENIZER, num_groups=1)[0], 0.0)
    chosen = {"members": "correct_only", "answer": True}
    blocks = build(own, **chosen)
    assert blocks[0].attempts == ()
    assert targets_for([own.group], blocks, hindsight=HindsightSettings(**chosen))[1]
    assert not targets_for([own.group], build(own, members="correct_only"))[1]


def test_memory_stands_after_the_siblings_with_its_own_labels() -> None:
    own = scored(make_groups(TOKENIZER, num_groups=1)[0], 0.0)
    (block,) = build(own, earlier(7), earlier(4, 1.0), memory=2)
    lines = [line for line in block.text.splitlines() if line.startswith("Attempt")]
    mine = SIBLINGS.replace("(CORRECT)", "(INCORRECT)").splitlines()
    assert lines[:5] == mine
    assert [line.partition("(")[2] for line in lines[5:10]] == [
        line.partition("(")[2] for line in SIBLINGS.splitlines()
    ]
    assert all("(CORRECT)" in line for line in lines[10:])
    assert [line.split()[1] for line in lines] == [str(number) for number in range(1, 16)]
    assert [attempt.sampled_in for attempt in block.attempts] == [None] * 5 + [7] * 5 + [4] * 5
    assert not block.homogeneous
    assert build(own, earlier(4, 0.0), memory=1)[0].homogeneous, "nothing else was seen of the question yet"
    assert build(own)[0].text == "".join(f"{line}\n" for line in [block.text.splitlines()[0], *mine, ""])


def test_members_of_the_memory() -> None:
    own = scored(make_groups(TOKENIZER, num_groups=1)[0], 0.0)
    (block,) = build(own, earlier(7), memory=1, members="correct_only")
    assert [attempt.rollout_index for attempt in block.attempts] == [0, 2, 4]
    assert {attempt.label for attempt in block.attempts} == {"CORRECT"}
    blocks = build(own, earlier(7), memory=1, members="leave_one_out")
    for block in blocks:
        shown = [(attempt.sampled_in, attempt.rollout_index) for attempt in block.attempts]
        assert shown == [(None, i) for i in range(5) if i != block.focal_rollout] + [(7, i) for i in range(5)]


def test_each_query_has_a_block_in_which_it_is_not() -> None:
    own = scored(make_groups(TOKENIZER, num_groups=1)[0])
    blocks = build(own, own_query="drop")
    texts = {(block.focal_rollout, block.focal_turn): block.text for block in blocks}
    header = blocks_of()[0].text.splitlines(keepends=True)[0]
    assert texts == {
        (0, 0): header + SIBLINGS.replace("capital of Andorra", "…") + "\n",
        (1, 0): header + SIBLINGS.replace("river", "…") + "\n",
        (1, 1): header + SIBLINGS.replace("tree / capital", "…") + "\n",
        (4, 0): header + SIBLINGS.replace("nothing", "…") + "\n",
    }
    _, pointers, credit = targets_for([own.group], blocks)
    _, _, kept = targets_for([own.group], build(own))
    places = [(item.rollout_id, item.position) for item in kept]
    assert [(item.rollout_id, item.position) for item in credit] == places, "every query token, each once"
    assert [item.student_logprob for item in credit] == pytest.approx([item.student_logprob for item in kept])
    assert [item.teacher_logprob for item in credit] != [item.teacher_logprob for item in kept]
    assert len(pointers) == 3


def test_a_query_of_a_sibling_that_is_the_same_goes_too() -> None:
    texts = [("<search> river </search>", "<answer> x </answer>")] * 3
    (group,) = make_groups(TOKENIZER, num_groups=1, texts=texts)
    (first, *_) = build(scored(group), own_query="drop")
    assert "river" not in first.text
    assert first.text.count("…") == 3


def length(text: str) -> int:
    return len(text.split())


def test_a_paraphrase_is_a_siblings_query_as_long_with_the_same_label_or_the_words_in_another_order() -> None:
    same = ["a b", "one two three", "red blue", "x y z"]
    assert replacement("one two three", "paraphrase", same, length, 0) == "x y z"
    assert replacement("a b", "paraphrase", same, length, 0) == "red blue"
    shuffled = replacement("p q r s", "paraphrase", same, length, 0)
    assert shuffled
    assert shuffled != "p q r s"
    assert sorted(shuffled.split()) == ["p", "q", "r", "s"]
    assert replacement("p q r s", "paraphrase", same, length, 0) == shuffled, "the same each time"
    assert replacement("single", "paraphrase", same, length, 0) is None
    assert replacement("single", "drop", same, length, 0) == "…"


def test_a_paraphrase_takes_as_many_tokens_as_the_query() -> None:
    own = scored(make_groups(TOKENIZER, num_groups=1)[0])
    (whole,), blocks = build(own), build(own, own_query="paraphrase")
    assert blocks
    for block in blocks:
        assert len(block.token_ids) == len(whole.token_ids)
        assert block.text != whole.text
    assert (4, 0) not in {(block.focal_rollout, block.focal_turn) for block in blocks}, "one word, nothing as long"
