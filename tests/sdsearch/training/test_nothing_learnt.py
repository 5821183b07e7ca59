"""When a run is said to have nothing to learn from, and what is said."""

from __future__ import annotations

import pytest

from schemas.records.evaluation import EvaluationAnswer
from schemas.records.rollout import Answer, Malformed, Search
from schemas.settings.root import DistillationSettings
from sdsearch.training.nothing_learnt import (
    IterationFigures,
    describe_example,
    describe_no_turn,
    find_nothing_learnt,
    writes_no_turn,
)
from tests.support.records import make_evaluation, make_turn

GOOD = IterationFigures(iteration=1, num_mixed_groups=3, num_searches=20, num_hits=40, reward_mean=0.4, grad_norm=0.2)
LOST = IterationFigures(iteration=1, num_mixed_groups=0, num_searches=0, num_hits=0, reward_mean=0.0, grad_norm=0.0)


def kinds(*figures: IterationFigures, **distillation: object) -> list[str]:
    return [warning.kind for warning in find_nothing_learnt(figures, DistillationSettings(**distillation))]


def of(figures: IterationFigures, **changes: float) -> IterationFigures:
    return IterationFigures(**{**vars(figures), **changes})


def answers(num_lost: int, num_searching: int, num_answering: int) -> list[EvaluationAnswer]:
    _, (like, *_) = make_evaluation()
    lost = like.model_copy(update={"answer": None, "queries": ()})
    searching = like.model_copy(update={"answer": None, "queries": ("river",)})
    answering = like.model_copy(update={"answer": "no", "queries": ()})
    return [lost] * num_lost + [searching] * num_searching + [answering] * num_answering


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((200, 0, 0), True),
        ((190, 10, 0), True),
        ((190, 0, 10), True),
        ((189, 11, 0), False),
        ((0, 0, 200), False),
        ((2, 0, 0), True),
        ((7, 1, 0), False),
        ((0, 8, 0), False),
    ],
)
def test_a_policy_that_answers_nothing_and_searches_nothing_writes_no_turn(
    counts: tuple[int, int, int], expected: bool
) -> None:
    assert writes_no_turn(answers(*counts)) == expected


def test_the_sentence_holds_counts_example_reason_and_remedy() -> None:
    assert describe_no_turn(answers(199, 1, 0)) == (
        "the policy does not write the turns of the protocol: of 200 evaluated questions 199 got neither a search "
        "nor an answer"
    )
    turn = make_turn(Malformed(reason="no_action"))
    turn = turn.model_copy(
        update={"generation": turn.generation.model_copy(update={"text": "I\nthink " * 90, "stop_reason": "length"})}
    )
    text = describe_example("Who?", turn, "compact")
    assert text.startswith("to 'Who?' it wrote 'I think I think ")
    assert "think…', which is no turn: it closes neither a search (</search>) nor an answer (</answer>); " in text
    assert "raise rollout.max_new_tokens" in text
    assert "rollout.template = 'instruct'" in text
    assert "\n" not in text
    blank = turn.model_copy(update={"generation": turn.generation.model_copy(update={"text": "\n \n"})})
    assert "it wrote '(blanks alone)', which" in describe_example("Who?", blank, "compact")
    ended = describe_example("Who?", make_turn(Malformed(reason="not_opened")), "instruct")
    assert "its closing tag has no opening tag; " in ended
    assert "max_new_tokens" not in ended
    assert "rollout.template = 'instruct'" not in ended, "it is"
    assert "rollout.template = 'few_shot'" in ended
    shown = describe_example("Who?", make_turn(Malformed(reason="not_opened")), "few_shot")
    assert "rollout.template" not in shown
    assert "sdsearch warmup" in shown


def test_each_kind_of_turn_has_a_reason_of_its_own() -> None:
    reasons = ("no_action", "not_opened", "empty_query", "empty_answer")
    actions = [Search(query="x"), Answer(answer="y"), *(Malformed(reason=reason) for reason in reasons)]
    texts = [describe_example("Who?", make_turn(action, last=True), "instruct") for action in actions]
    assert len({text.partition("which is no turn: ")[2].partition(";")[0] for text in texts}) == len(actions)


def test_an_iteration_to_learn_from_is_no_reason_to_speak() -> None:
    assert kinds(GOOD) == []
    assert kinds(LOST, of(GOOD, iteration=2)) == []
    assert kinds(of(GOOD, num_hits=0), of(GOOD, iteration=2)) == []


def test_each_lack_is_told_apart() -> None:
    assert kinds(of(GOOD, num_mixed_groups=0)) == ["no_mixed_group"]
    assert kinds(of(GOOD, num_searches=0, num_hits=0)) == ["no_query"]
    assert kinds(of(GOOD, grad_norm=0.0)) == ["no_gradient"]
    assert kinds(of(GOOD, num_hits=0)) == ["nothing_found"]
    assert kinds(LOST, of(LOST, iteration=2)) == ["no_mixed_group", "no_query", "no_gradient"]
    # Without a search nothing can be found; an iteration that did not search says nothing of the index.
    assert kinds(of(GOOD, num_hits=0), of(GOOD, iteration=2, num_searches=0, num_hits=0)) == []


def test_queries_are_missed_only_where_they_are_distilled() -> None:
    silent = of(GOOD, num_searches=0, num_hits=0)
    assert kinds(silent, enabled=False) == []
    assert kinds(silent, positions="completion") == []


def test_a_sentence_names_its_iterations_and_figures() -> None:
    one, two = of(GOOD, num_hits=0, iteration=4), of(GOOD, num_hits=0, iteration=5, num_searches=7)
    (warning,) = find_nothing_learnt([one, two], DistillationSettings())
    assert warning.iteration == 5
    assert warning.text.startswith("none of the 27 searches of iterations 4 to 5 found a passage; ")
    (alone,) = find_nothing_learnt([of(GOOD, num_mixed_groups=0, iteration=4)], DistillationSettings())
    assert alone.text.startswith("no group of iteration 4 had rollouts with different rewards (mean reward 0.400), so ")
