"""A study's figures against plain loops over the answers, and what the tables say of them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from flows.console.errors import UserError
from flows.study.answers import Answers, read_answers
from flows.study.figures import compute_figures
from flows.study.show_figures import figures_csv, figures_markdown
from schemas.records.evaluation import EvaluationAnswer, EvaluationMode
from schemas.records.study import RunOutcome, Study, StudyResults, Variant
from schemas.records.study_figures import FigureRow, PrimaryFigure, Protocol, StudyFigures, VariantCost
from sdsearch.evaluation.intervals import draw_resamples
from sdsearch.seeds import derive_seed
from storage.database.connection import Database
from storage.database.rows import evaluation_rows
from storage.database.tables import insert
from storage.workspace import Workspace
from tests.support.records import make_evaluation

QUESTIONS = tuple(f"toy:{number:02d}" for number in range(20))
UPDATES = (0, 2, 4)
EVIDENCE = {key: (frozenset({"a", "b"}), frozenset({"c"})) for key in QUESTIONS}
RUNS = {"toy-grpo-s0": 0, "toy-grpo-s1": 1, "toy-sd-s0": 0, "toy-sd-s1": 1}


def drawn(run: str, updates: int, mode: EvaluationMode) -> list[EvaluationAnswer]:
    """Answers as a policy gives them: found or not, read or not."""
    generator = np.random.default_rng(derive_seed(run, updates, mode))
    answers = []
    for key in QUESTIONS:
        num_searches = int(generator.integers(0, 3))
        golden = int(generator.integers(0, num_searches + 1))
        em = float(golden > 0 and generator.random() < 0.5 + 0.1 * updates)
        found = tuple(tuple(generator.choice(list("abcd"), 2, replace=False)) for _ in range(num_searches))
        changes: dict[str, Any] = {
            "question_key": key,
            "queries": ("query",) * num_searches,
            "num_hits": 2 * num_searches,
            "num_golden_hits": golden,
            "em": em,
            "f1": 0.5 + em / 2,
            "found": tuple(tuple(map(str, search)) for search in found),
        }
        answers.append(make_evaluation()[1][0].model_copy(update=changes))
    return answers


def plain_figure(name: str, answers: list[EvaluationAnswer]) -> float:
    found = [answer for answer in answers if answer.num_golden_hits]
    match name:
        case "em":
            return sum(a.em for a in answers) / len(answers)
        case "found":
            return len(found) / len(answers)
        case "read":
            return sum(a.em for a in found) / len(found) if found else 0.0
        case "f1":
            return sum(a.f1 for a in answers) / len(answers)
        case "search_quality":
            return sum(a.num_golden_hits for a in answers) / max(1, sum(a.num_hits for a in answers))
        case "searches":
            return sum(len(a.queries) for a in answers) / len(answers)
        case "evidence":
            shown = [{passage for search in a.found for passage in search} for a in answers]
            return sum("c" in s and bool({"a", "b"} & s) for s in shown) / len(answers)
    raise AssertionError(name)


def make_study(**protocol: Any) -> Study:
    return Study(
        name="toy",
        base="tiny",
        baseline="grpo",
        seeds=(0, 1),
        variants={"grpo": Variant(title="GRPO"), "sd": Variant()},
        protocol=Protocol(**protocol),
    )


def outcome(run: str) -> RunOutcome:
    return RunOutcome(
        run=run,
        variant=run.split("-")[1],
        seed=RUNS[run],
        finished=True,
        updates_done=4,
        num_iterations=4,
        evaluations=(),
    )


OUTCOMES = [outcome(run) for run in RUNS]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, EvaluationMode], Answers]:
    """As they are read from a database."""
    database = Database(Workspace.open(tmp_path_factory.mktemp("workspace")))
    modes: tuple[EvaluationMode, ...] = ("greedy", "sampled")
    for run in RUNS:
        for updates in UPDATES:
            reports = [(make_evaluation()[0].model_copy(update={"mode": m}), drawn(run, updates, m)) for m in modes]
            with database.transaction() as connection:
                for table, rows in evaluation_rows(run, updates, reports).items():
                    insert(connection, table, rows)
    places = {run: {updates: (run, updates) for updates in UPDATES} for run in RUNS}
    assert read_answers(database, places, "toy", "test", EVIDENCE) == {}
    return read_answers(database, places, "toy", "dev", EVIDENCE)


def rows_of(study: Study, answers: dict[tuple[str, EvaluationMode], Answers]) -> dict[tuple[Any, ...], FigureRow]:
    found = compute_figures(study, OUTCOMES, answers)
    return {(row.variant, row.mode, row.figure, row.updates): row for row in found.rows}


def test_every_figure_is_that_of_a_plain_loop(answers: dict[tuple[str, EvaluationMode], Answers]) -> None:
    found = compute_figures(make_study(), OUTCOMES, answers)
    points = [run for run in found.runs if run.updates is not None]
    assert len(points) == 4 * 2 * 3 * 7
    for run in points:
        assert run.updates is not None
        assert run.value == pytest.approx(plain_figure(run.figure, drawn(run.run, run.updates, run.mode))), run
    for run in found.runs:
        if run.figure == "em_area":
            ems = [plain_figure("em", drawn(run.run, updates, run.mode)) for updates in UPDATES]
            assert run.value == pytest.approx((ems[0] + 2 * ems[1] + ems[2]) / 4)


@pytest.mark.parametrize("figure", ["em", "read", "search_quality"])
def test_a_difference_is_that_of_a_bootstrap_that_draws_rows(
    answers: dict[tuple[str, EvaluationMode], Answers], figure: str
) -> None:
    row = rows_of(make_study(), answers)["sd", "sampled", figure, 4]
    draws = draw_resamples(2, len(QUESTIONS), seed=derive_seed("figures", "toy"))
    differences = []
    for seeds, questions in zip(draws.seeds_RS[:400], draws.questions_RQ[:400], strict=True):
        per_seed = []
        for seed in np.repeat([0, 1], seeds):
            both = [
                plain_figure(figure, [all_answers[q] for q in np.repeat(np.arange(len(QUESTIONS)), questions)])
                for variant in ("sd", "grpo")
                for all_answers in [drawn(f"toy-{variant}-s{seed}", 4, "sampled")]
            ]
            per_seed.append(both[0] - both[1])
        differences.append(sum(per_seed) / 2)
    assert row.difference is not None
    assert (row.difference.low, row.difference.high) == pytest.approx(
        np.quantile(differences, [0.025, 0.975]), abs=0.05
    )
    assert row.difference.mean == pytest.approx(
        np.mean(
            [
                plain_figure(figure, drawn(f"toy-sd-s{seed}", 4, "sampled"))
                - plain_figure(figure, drawn(f"toy-grpo-s{seed}", 4, "sampled"))
                for seed in (0, 1)
            ]
        )
    )


def test_only_primary_comparisons_are_corrected(answers: dict[tuple[str, EvaluationMode], Answers]) -> None:
    primary = (
        PrimaryFigure(figure="em", mode="greedy", updates=4),
        PrimaryFigure(figure="em_area", mode="sampled"),
        PrimaryFigure(figure="read", mode="sampled", updates=2),
    )
    rows = rows_of(make_study(primary=primary), answers)
    differences = {key[1:]: row.difference for key, row in rows.items() if row.difference is not None}
    corrected = {key: d for key, d in differences.items() if d.p_holm is not None}
    assert set(corrected) == {(chosen.mode, chosen.figure, chosen.updates) for chosen in primary}
    p_values = sorted(d.p_value for d in corrected.values() if d.p_value is not None)
    smallest = min(corrected.values(), key=lambda d: d.p_value or 0.0)
    assert smallest.p_holm == pytest.approx(min(1.0, 3 * p_values[0]))
    assert all(rows[key].is_primary == (key[1:] in corrected) for key in rows)


def test_the_area_under_em_is_primary_where_nothing_was_chosen(
    answers: dict[tuple[str, EvaluationMode], Answers],
) -> None:
    rows = rows_of(make_study(), answers)
    assert {key[1:] for key, row in rows.items() if row.is_primary} == {
        ("greedy", "em_area", None),
        ("sampled", "em_area", None),
    }


def test_the_protocols_updates_are_shown_and_end_the_curve(
    answers: dict[tuple[str, EvaluationMode], Answers],
) -> None:
    found = compute_figures(make_study(updates=(2,), threshold=0.01), OUTCOMES, answers)
    assert {row.updates for row in found.rows} == {None, 2}
    for run in found.runs:
        if run.figure == "em_area":
            ems = [plain_figure("em", drawn(run.run, updates, run.mode)) for updates in (0, 2)]
            assert run.value == pytest.approx(sum(ems) / 2)
    assert {row.num_reached for row in found.rows if row.figure == "updates_until"} == {2}
    nobody = compute_figures(make_study(threshold=1.0), OUTCOMES, answers)
    until = [row for row in nobody.rows if row.figure == "updates_until"]
    assert {(row.num_reached, row.value.mean) for row in until} == {(0, 4.0)}


def test_one_seed_has_no_p_value(answers: dict[tuple[str, EvaluationMode], Answers]) -> None:
    own = [one for one in OUTCOMES if one.seed == 0]
    of_seed = {key: value for key, value in answers.items() if key[0].endswith("s0")}
    rows = compute_figures(make_study(), own, of_seed).rows
    differences = [row.difference for row in rows if row.difference is not None]
    assert differences
    assert all(d.p_value is None and d.p_holm is None and d.num_seeds == 1 for d in differences)


def test_other_questions_cannot_be_paired(answers: dict[tuple[str, EvaluationMode], Answers]) -> None:
    key = ("toy-sd-s0", "greedy")
    other = {**answers, key: answers[key]._replace(questions=("toy:other", *QUESTIONS[1:]))}  # type: ignore[index]
    with pytest.raises(UserError, match="study toy: its runs were evaluated on different questions"):
        compute_figures(make_study(), OUTCOMES, other)  # type: ignore[arg-type]


def test_tables_and_csv_have_every_figure(answers: dict[tuple[str, EvaluationMode], Answers]) -> None:
    study = make_study()
    found = compute_figures(study, OUTCOMES, answers)
    cost = VariantCost(
        variant="grpo", num_seeds=2, train_s=61.4, evaluate_s=7.0, sampled_tokens=12345.0, update_tokens=1.0
    )
    figures = StudyFigures(
        study="toy",
        dataset="toy",
        split="dev",
        num_questions=20,
        updates=UPDATES,
        rows=found.rows,
        runs=found.runs,
        costs=(cost,),
    )
    results = StudyResults(study=study, outcomes=tuple(OUTCOMES), summaries=(), figures=(figures,))
    text = figures_markdown(figures, results)
    for heading in ("EM:", "found:", "read:", "F1:", "search quality:", "all evidence:", "updates until EM 0.6:"):
        assert text.count(f"\n{heading}\n") == 2
    assert "| GRPO | 2 | 61 | 7 | 12,345 | 1 |" in text
    rows = list(csv.DictReader(io.StringIO(figures_csv(figures))))
    assert len(rows) == len(found.runs) == 4 * 2 * (3 * 7 + 2)
    assert {row["figure"] for row in rows} >= {"evidence", "em_area"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"updates": (6, 2)}, "updates must rise"),
        ({"primary": ({"figure": "em", "mode": "greedy"},)}, "figure 'em' needs updates"),
        ({"primary": ({"figure": "em_area", "mode": "greedy", "updates": 2},)}, "takes no updates"),
        ({"threshold": 0.0}, "threshold"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        make_study(**wrong)


def test_the_view_tells_finding_from_reading(tmp_path: Path) -> None:
    database, answers = Database(Workspace.open(tmp_path)), drawn("toy-sd-s0", 2, "greedy")
    with database.transaction() as connection:
        for table, rows in evaluation_rows("run", 2, [(make_evaluation()[0], answers)]).items():
            insert(connection, table, rows)
    (row,) = database.query("SELECT * FROM v_evaluation_figures").to_pylist()
    names = {"em": "em", "f1": "f1", "found_share": "found", "em_where_found": "read"}
    names |= {"search_quality": "search_quality", "searches_per_rollout": "searches"}
    assert {name: row[name] for name in names} == pytest.approx({n: plain_figure(f, answers) for n, f in names.items()})
