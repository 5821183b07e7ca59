"""What an evaluation can be asked for, and what it is told that it cannot have."""

from __future__ import annotations

import json

import pytest

from flows.console.errors import UserError
from flows.evaluation.plan import Request, chosen_sets, plan_model, plan_of, plan_run
from flows.settings.load import load_settings
from schemas.records.ledger import RunRecord
from schemas.records.run_kind import EvaluationKind, ReplayKind
from schemas.settings.data import SetName
from tests.support.records import make_run

PAPER = load_settings("paper_3b")
NQ, HOTPOTQA = SetName("nq", "test"), SetName("hotpotqa", "dev")


def source_run() -> RunRecord:
    settings = load_settings("tiny")
    changes = {
        "settings_json": settings.model_dump_json(),
        "settings_hash": settings.content_hash(),
        "policy_version": 3,
    }
    return make_run("first").model_copy(update=changes)


def test_names_stand_for_the_splits_that_the_settings_test() -> None:
    assert len(chosen_sets(PAPER, "all", None)) == 7
    assert chosen_sets(PAPER, "hotpotqa, nq,nq:test", None) == (HOTPOTQA, NQ)
    assert chosen_sets(PAPER, "nq:dev", None) == (SetName("nq", "dev"),)
    assert chosen_sets(PAPER, None, None) == (SetName("nq", "dev"),)
    assert chosen_sets(PAPER, None, "test") == (NQ,)


@pytest.mark.parametrize(
    ("datasets", "split", "message"),
    [
        ("hotpot", None, "data.test has no 'hotpot'; did you mean 'hotpotqa'"),
        ("zzz", None, "data.test has nq, triviaqa"),
        ("nq:../x", None, "data.test has no 'nq:../x'"),
        (" ,", None, "expected 'all' or names"),
        ("nq", "dev", "write it to the name, such as nq:dev"),
    ],
)
def test_names_that_are_not_there(datasets: str, split: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen_sets(PAPER, datasets, split)


def test_a_run_of_an_earlier_program_lacks_the_settings_that_came_since() -> None:
    settings = json.loads(source_run().settings_json)
    for name in ("reward", "storage"):
        del settings[name]
    former = source_run().model_copy(update={"settings_json": json.dumps(settings)})
    assert plan_run(former, (), Request()).settings.reward == load_settings("tiny").reward
    assert plan_run(former, ("evaluation.seed=3",), Request()).settings.evaluation.seed == 3
    with pytest.raises(UserError, match=r"--set reward\.format_bonus: evaluate --run takes the run"):
        plan_run(former, ("reward.format_bonus=0.5",), Request())


def test_the_same_request_is_the_same_evaluation_and_another_one_is_not() -> None:
    plans = [
        plan_run(source_run(), (), Request()),
        plan_run(source_run(), (), Request()),
        plan_run(source_run(), (), Request(num_questions=5)),
        plan_run(source_run(), (), Request(split="test")),
        plan_run(source_run(), (), Request(mode="sampled")),
        plan_run(source_run().model_copy(update={"policy_version": 4}), (), Request()),
        plan_model("first", "tiny", (), Request()),
    ]
    assert plans[0] == plans[1]
    assert len({plan.run for plan in plans}) == 6
    assert plans[2].settings.evaluation.num_questions == 5
    assert plans[0].settings.evaluation.num_questions == load_settings("tiny").evaluation.num_questions
    assert plan_model(None, "paper_3b", (), Request(datasets="all")).settings.evaluation.num_questions == 0


def test_a_record_says_what_was_asked() -> None:
    for plan in (plan_run(source_run(), (), Request()), plan_model("mini", "tiny", (), Request(datasets="all"))):
        changes = {
            "run": plan.run,
            "kind": plan.kind,
            "settings_json": plan.settings.model_dump_json(),
        }
        assert plan_of(make_run().model_copy(update=changes)) == plan


def test_a_run_s_policy_is_evaluated_with_the_run_s_settings() -> None:
    plan = plan_run(source_run(), ["data.test=['world:dev']", "rollout.questions_per_batch=1"], Request(datasets="all"))
    assert plan.sets == (SetName("world", "dev"),)
    with pytest.raises(UserError, match=r"--set rollout\.max_searches: evaluate --run takes the run's own settings"):
        plan_run(source_run(), ["rollout.max_searches=1"], Request())
    for kind, message in (
        (ReplayKind(source="a", first=1, last=2), "is a replay"),
        (EvaluationKind(source="a", version=1), "an evaluation itself"),
    ):
        with pytest.raises(UserError, match=message):
            plan_run(source_run().model_copy(update={"kind": kind}), (), Request())


@pytest.mark.parametrize("policy", ["../some/where/", "Qwen/Qwen2.5-3B", "..", "日本", "-x"])
def test_a_made_name_can_be_a_run(policy: str) -> None:
    assert plan_model(policy, "tiny", (), Request()).run
