"""`sdsearch evaluate --compare`: what is put side by side, with which interval, and what is refused or marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.app import run_command
from flows.console.errors import UserError
from flows.evaluation.compare import SetKey, Side, check_conditions, compare_sets, differences, read_side, shared_sets
from schemas.records.evaluation import EvaluationAnswer, EvaluationConditions
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.records import make_conditions, make_evaluation

KEY = SetKey("toy", "dev", "greedy")


def answers(ems: list[float], cover_em: float | None = 0.0) -> dict[str, EvaluationAnswer]:
    (answer,) = make_evaluation()[1]
    keys = [f"toy:{number}" for number in range(len(ems))]
    return {
        key: answer.model_copy(update={"question_key": key, "em": em, "f1": em / 2, "cover_em": cover_em})
        for key, em in zip(keys, ems, strict=True)
    }


def side(name: str, ems: list[float], key: SetKey = KEY, cover_em: float | None = 0.0, **changes: Any) -> Side:
    return Side(name, {key: (make_conditions().model_copy(update=changes), answers(ems, cover_em))})


def refusal(first: Side, second: Side, allowed: tuple[str, ...] = ()) -> str:
    found = {KEY: differences(first.sets[KEY][0], second.sets[KEY][0])}
    with pytest.raises(UserError) as caught:
        check_conditions((first, second), found, allowed)
    return str(caught.value)


def test_differences_are_paired_by_question() -> None:
    """The two differ by the same in every question, so that the interval has no width, whatever the questions are."""
    rng = np.random.default_rng(0)
    ems = [float(em) for em in rng.integers(0, 2, 40)]
    first, second = side("a", ems), side("b", [em + 0.25 for em in ems])
    reordered = Side("b", {KEY: (second.sets[KEY][0], dict(reversed(second.sets[KEY][1].items())))})
    for other in (second, reordered):
        em, f1, cover_em = compare_sets(first, other, [KEY])
        assert (em.metric, f1.metric, cover_em.metric) == ("EM", "F1", "cover EM")
        assert em.difference == pytest.approx((0.25, 0.25, 0.25))
        assert (em.first, em.second) == pytest.approx((np.mean(ems), np.mean(ems) + 0.25))
        assert f1.difference.mean == pytest.approx(0.125)


def test_a_mean_counts_each_set_the_same() -> None:
    other = SetKey("nq", "test", "greedy")
    first = Side("a", {**side("a", [0.0] * 10).sets, **side("a", [0.0], other).sets})
    second = Side("b", {**side("b", [0.0] * 10).sets, **side("b", [1.0], other).sets})
    means = [row for row in compare_sets(first, second, [KEY, other]) if row.where == "mean of 2"]
    assert [(row.metric, row.num_questions, row.difference.mean) for row in means] == [
        ("EM", 11, 0.5), ("F1", 11, 0.25), ("cover EM", 11, 0.0),
    ]  # fmt: skip


def test_a_metric_that_one_side_lacks_is_left_out() -> None:
    found = compare_sets(side("a", [1.0]), side("b", [1.0], cover_em=None), [KEY])
    assert [row.metric for row in found] == ["EM", "F1"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"num_passages": 5},
            "(passages: 3 and 5); evaluate one again under the other's, or mark",
        ),
        ({"index_hash": "9" * 64}, "(index: 222222222222 and 999999999999); evaluate one again"),
        ({"decoding": "x", "limits": "y"}, "with --despite limits,decoding"),
        ({"questions_sha256": "9" * 64}, "ask both the same questions of toy:dev"),
    ],
)
def test_another_condition_is_refused_with_both_values(changes: dict[str, Any], said: str) -> None:
    assert said in refusal(side("a", [1.0]), side("b", [1.0], **changes))


def test_what_may_differ_is_named_and_the_questions_never_may() -> None:
    a, b = side("a", [1.0]), side("b", [1.0], num_passages=5, protocol="search_r1")
    found = {KEY: differences(a.sets[KEY][0], b.sets[KEY][0])}
    check_conditions((a, b), found, ("passages", "protocol"))
    assert "protocol: tags compact and search_r1" in refusal(a, b, ("passages",))
    assert "ask both the same questions" in refusal(a, side("b", [1.0], questions_sha256="9" * 64), ("protocol",))


def test_every_condition_but_names_and_program_is_in_the_fingerprint() -> None:
    own = make_conditions()
    free = {"mode", "dataset", "split", "corpus", "retriever", "encoder", "code_version"}
    for name in EvaluationConditions.model_fields:
        changed = own.model_copy(update={name: 7 if name == "num_passages" else "another"})
        assert (changed.fingerprint == own.fingerprint) == (name in free), name
        assert bool(differences(own, changed)) == (name not in free), name


def test_two_that_answered_nothing_in_common_are_refused() -> None:
    with pytest.raises(UserError, match="a has answered toy:dev greedy, and b nq:test greedy; evaluate both"):
        shared_sets(side("a", [1.0]), side("b", [1.0], SetKey("nq", "test", "greedy")))


@pytest.mark.long
def test_evaluations_of_a_workspace_are_compared_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> int:
        return run_command([*words, "--workspace", str(tmp_path)])

    small = ["evaluate", "--config", "tiny", "--datasets", "world:dev", "--num-questions", "4"]
    assert run(*small, "--name", "a") == 0
    assert "searched: world (dense, flat, lexical), index " in capsys.readouterr().out
    assert run(*small, "--name", "b", "--set", "retrieval.num_passages=1") == 0
    assert run(*small, "--name", "c", "--set", "rollout.questions_per_batch=1") == 0
    capsys.readouterr()
    assert run("evaluate", "--compare", "a", "c") == 0
    said = capsys.readouterr().out
    assert "+0.000 … +0.000" in said, "a batch's size changes no answer"
    assert "NOT THE SAME" not in said
    assert run("evaluate", "--compare", "a", "b") == 2
    assert "passages: 3 and 1" in capsys.readouterr().err
    assert run("evaluate", "--compare", "a", "b", "--despite", "passages") == 0
    assert "NOT THE SAME, passages: a 3, b 1" in capsys.readouterr().out
    for words, said in (
        (["a", "b", "--despite", "pasages"], "'pasages' is no condition that may differ; did you mean 'passages'?"),
        (["a", "b", "--despite", "questions"], "'questions' is no condition that may differ"),
        (["a", "b", "--name", "x"], "leave --name out"),
        (["a", "cc"], "no run 'cc' in this workspace"),
        (["a", "b@x"], "expected RUN or RUN@UPDATES"),
        (["a", "b@9"], "run 'b' has no evaluation after so many updates"),
    ):
        assert run("evaluate", "--compare", *words) == 2
        assert said in capsys.readouterr().err
    assert run("evaluate", "--despite", "passages") == 2
    assert "belongs to --compare" in capsys.readouterr().err
    kept = Storage(Workspace(tmp_path)).database.query("SELECT run, fingerprint FROM evaluation_conditions").to_pylist()
    prints = {row["run"]: row["fingerprint"] for row in kept}
    assert prints["a"] == prints["c"] != prints["b"]
    assert read_side(Storage(Workspace(tmp_path)), "a").sets.keys() == {SetKey("world", "dev", "greedy")}
