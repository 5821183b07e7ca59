"""The curve that comes with the program: shown beside what differs in the method alone."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows.run.progress import RichReporter
from flows.run.reference import comparable_hash, find_reference, reference_table, shipped_references
from flows.settings.load import load_settings
from schemas.records.evaluation import EvaluationMode, EvaluationReport
from schemas.records.reference import ReferenceCurve, ReferenceRun
from tests.support.records import make_evaluation

QUICKSTART = load_settings("quickstart")
MODES: tuple[EvaluationMode, ...] = ("greedy", "sampled")


def evaluation(updates: int, mode: EvaluationMode, em: float) -> EvaluationReport:
    changes = {"iteration": updates, "mode": mode, "em": em, "search_quality": em / 2, "num_questions": 200}
    return make_evaluation()[0].model_copy(update=changes)


def curve(seed: int = 0) -> ReferenceCurve:
    evaluations = tuple(evaluation(updates, mode, 0.3 + updates / 50) for updates in (0, 5, 10, 20) for mode in MODES)
    return ReferenceCurve(
        title="GRPO",
        config="quickstart_grpo",
        made_with="a command",
        code_version="0",
        comparable_hash=comparable_hash(load_settings("quickstart_grpo")),
        runs=(ReferenceRun(seed=seed, evaluations=evaluations),),
    )


def test_the_shipped_curve_is_of_the_shipped_quickstart() -> None:
    (shipped,) = shipped_references()
    assert shipped.config == "quickstart_grpo"
    assert find_reference(QUICKSTART) == shipped
    (run, *_) = shipped.runs
    last = [report for report in run.evaluations if report.iteration == QUICKSTART.iterations]
    assert {report.mode for report in last} == set(QUICKSTART.evaluation.modes)
    assert {report.num_questions for report in run.evaluations} == {QUICKSTART.evaluation.num_questions}
    assert {0, 10, 20} <= {report.iteration for report in run.evaluations}


@pytest.mark.parametrize(
    "same",
    [
        "distillation.alpha=1",
        "hindsight.labels=none",
        "evaluation.every=5",
        "model.torch_threads=1",
        "storage.keep_checkpoints=3",
    ],
)
def test_what_belongs_to_the_method_or_changes_no_result_may_differ(same: str) -> None:
    assert find_reference(load_settings("quickstart", [same]), [curve()]) == curve()


@pytest.mark.parametrize(
    "other",
    [
        "seed=1",
        "iterations=24",
        "retrieval.num_passages=1",
        "update.learning_rate=1e-4",
        "evaluation.num_questions=100",
        "evaluation.split=test",
        "grpo.kl_coefficient=0",
        "data.questions_per_iteration=8",
        "reward.metric=em",
        "rollout.group_size=4",
        "distillation.enabled=false",
    ],
)
def test_other_settings_have_no_comparison(other: str) -> None:
    assert find_reference(load_settings("quickstart", [other]), [curve()]) is None


def said(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_run_stands_beside_the_reference_after_the_same_updates() -> None:
    console = Console(file=io.StringIO(), width=160)
    own = [evaluation(updates, mode, 0.6) for updates in (0, 10, 25) for mode in MODES]
    table = reference_table(curve(), 0, own)
    assert table is not None
    console.print(table)
    rows = [line.split() for line in said(console).splitlines() if line.split()[1:2] in (["greedy"], ["sampled"])]
    assert rows == [[*("10", mode), *("0.600", "0.500", "+0.100", "0.300", "0.250", "+0.050")] for mode in MODES]
    assert "beside GRPO with seed 0, stored with the program" in said(console)
    assert reference_table(curve(), 0, own[:2]) is None, "before the first update nothing can differ"
    assert reference_table(curve(), 1, own) is None
    other = [report.model_copy(update={"num_questions": 50}) for report in own]
    assert reference_table(curve(), 0, other) is None


@pytest.mark.parametrize(("overrides", "shown"), [([], True), (["update.learning_rate=1e-4"], False)])
def test_the_end_of_a_run_prints_it(
    overrides: list[str], shown: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("flows.run.reference.shipped_references", lambda: [curve()])
    console = Console(file=io.StringIO(), width=160)
    with RichReporter(tmp_path / "sdsearch.duckdb", console) as reporter:
        reporter.run_started("first", load_settings("quickstart", overrides), 1)
        for mode in MODES:
            reporter.evaluated(evaluation(0, mode, 0.3))
            reporter.evaluated(evaluation(20, mode, 0.8))
        reporter.run_done("first")
    assert ("stored with the program" in said(console)) is shown
    assert ("One run with one seed" in said(console)) is shown
