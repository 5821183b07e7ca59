"""Runs and variants of studies side by side: bands over seeds, and the questions that they answer differently."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from starlette.testclient import TestClient

from flows.inspect.web.charts import Chart, Curve, over_seeds
from flows.inspect.web.compare import flipped
from flows.inspect.web.server import build_app
from flows.inspect.web.source import Source
from flows.study.plan import plan_runs
from flows.training.job import open_storage
from schemas.records.study import Study, Variant
from storage.database.rows import evaluation_rows
from storage.database.tables import insert
from storage.runs.studies import write_study
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.records import make_evaluation, make_run

STUDY = Study(
    name="ab",
    base="tiny",
    set=("iterations=1",),
    baseline="grpo",
    seeds=(0, 1, 2),
    variants={
        "sd": Variant(title="SD-Search", set=("distillation.warmup_iterations=0",)),
        "grpo": Variant(title="GRPO", set=("distillation.enabled=false",)),
    },
)
# EM of four questions after the only update; before it none was right.
EMS = {
    "ab-sd-s0": (1, 1, 0, 0),
    "ab-sd-s1": (1, 1, 0, 1),
    "ab-sd-s2": (1, 0, 0, 1),
    "ab-grpo-s0": (0, 0, 1, 1),
    "ab-grpo-s1": (0, 0, 1, 1),
    "ab-grpo-s2": (1, 1, 1, 1),
    "alone": (1, 0, 1, 0),
}


def evaluate(storage: Storage, run: str, updates: int, ems: tuple[int, ...]) -> None:
    report, (answer,) = make_evaluation()
    changes = {"iteration": updates, "policy_version": updates, "em": fmean(ems), "num_questions": len(ems)}
    answers = [
        answer.model_copy(
            update={
                "question_key": f"toy:{n}",
                "question": f"question {n}?",
                "em": float(em),
                "answer": "right" if em else f"wrong of {run[-2:]}",
            }
        )
        for n, em in enumerate(ems)
    ]
    rows = evaluation_rows(run, updates, [(report.model_copy(update={**changes, "mode": "greedy"}), answers)])
    with storage.database.transaction() as connection:
        for table, part in rows.items():
            insert(connection, table, part)


def make_workspace(folder: Path, unfinished: tuple[str, ...] = ()) -> Workspace:
    storage, settings = open_storage(folder), {plan.run: plan.settings for plan in plan_runs(STUDY)}
    write_study(storage.workspace, STUDY)
    for run, ems in EMS.items():
        stored = settings.get(run, settings["ab-sd-s0"])
        changes = {"settings_json": stored.model_dump_json(), "settings_hash": stored.content_hash()}
        changes |= {"status": "failed" if run in unfinished else "done", "seed": stored.seed}
        storage.create_run(make_run(run).model_copy(update=changes))
        evaluate(storage, run, 0, (0, 0, 0, 0))
        evaluate(storage, run, 1, ems)
    return storage.workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("compare"))


@pytest.fixture
def pages(workspace: Workspace) -> Iterator[TestClient]:
    with TestClient(build_app(workspace), base_url="http://127.0.0.1") as client:
        yield client


def charts_of(text: str) -> dict[str, dict[str, Any]]:
    charts = json.loads(re.findall(r'id="chart-data">(.*?)</script>', text)[0])
    return {chart["title"]: {curve["label"]: curve for curve in chart["curves"]} for chart in charts}


def test_a_variant_is_the_mean_of_its_seeds_with_a_band_from_the_lowest_to_the_highest(pages: TestClient) -> None:
    curves = charts_of(pages.get("/compare?study=ab").text)["Dev EM"]
    assert list(curves) == ["GRPO (ab, 3 seeds)", "SD-Search (ab, 3 seeds)"], "the baseline leads"
    for variant, curve in (("grpo", "GRPO"), ("sd", "SD-Search")):
        ems = [fmean(EMS[f"ab-{variant}-s{seed}"]) for seed in range(3)]
        shown = curves[f"{curve} (ab, 3 seeds)"]
        assert shown["values"] == pytest.approx([0.0, fmean(ems)])
        assert (shown["low"], shown["high"]) == ([0.0, min(ems)], [0.0, max(ems)])


def test_a_run_stands_beside_a_variant(pages: TestClient) -> None:
    text = pages.get("/compare?run=alone&variant=ab/sd").text
    curves = charts_of(text)["Dev EM"]
    assert set(curves) == {"alone", "SD-Search (ab, 3 seeds)"}
    assert curves["alone"]["values"] == [0.0, 0.5]
    assert curves["alone"]["high"][1] > 0.5, "its band is an interval over questions"
    assert "from the lowest to the highest of its seeds" in text
    for value in ("alone", "ab/sd"):
        assert re.search(rf'value="{value}" checked', text)


def test_questions_flip_where_most_seeds_do(workspace: Workspace, pages: TestClient) -> None:
    sd, grpo = ([f"ab-{variant}-s{seed}" for seed in range(3)] for variant in ("sd", "grpo"))
    with Source(workspace).rows() as rows:
        found = {row["question"]: row for row in flipped(rows, sd, grpo)}
        single = [row["question"] for row in flipped(rows, ["ab-sd-s0"], ["ab-grpo-s0"])]
        over_time = [row["question"] for row in flipped(rows, ["alone"], ["alone"])]
    assert set(found) == {"question 0?", "question 1?", "question 2?"}
    first = found["question 0?"]
    assert (first["first"]["num_right"], first["second"]["num_right"], first["second"]["num_runs"]) == (3, 1, 3)
    assert first["first"]["answers"] == [("right", 3)]
    assert {answer for answer, _ in first["second"]["answers"]} == {"wrong of s0", "wrong of s1", "right"}
    assert sorted(single) == ["question 0?", "question 1?", "question 2?", "question 3?"]
    assert sorted(over_time) == ["question 0?", "question 2?"], "its first evaluation against its newest"
    text = html.unescape(pages.get("/compare?variant=ab/sd&variant=ab/grpo").text)
    assert "right with 2 of 3 seeds" in text
    assert "question 3?" not in text


def test_the_other_side_of_the_flips_is_chosen(pages: TestClient) -> None:
    address = "/compare?run=ab-sd-s0&run=alone&run=ab-grpo-s0"
    second, third = (pages.get(f"{address}&other={place}").text for place in (1, 2))
    assert "question 3?" not in second
    assert "question 3?" in third
    assert "other=2" in second, "a link leads to it"
    assert pages.get(f"{address}&other=9").text == second


def test_seeds_that_are_not_finished_count_while_none_is(tmp_path: Path) -> None:
    partly = make_workspace(tmp_path / "partly", unfinished=("ab-sd-s1",))
    nothing = make_workspace(tmp_path / "nothing", unfinished=("ab-sd-s0", "ab-sd-s1", "ab-sd-s2"))
    for workspace, seeds, label in ((partly, (0, 2), "2 of 3 seeds"), (nothing, (0, 1, 2), "3 seeds")):
        with TestClient(build_app(workspace), base_url="http://127.0.0.1") as client:
            (curve,) = charts_of(client.get("/compare?variant=ab/sd").text)["Dev EM"].items()
        assert curve[0] == f"SD-Search (ab, {label})"
        assert curve[1]["values"][1] == pytest.approx(fmean(fmean(EMS[f"ab-sd-s{seed}"]) for seed in seeds))


def test_a_mean_is_over_the_seeds_that_have_a_value() -> None:
    first = Chart("Reward", "", "iteration", [1, 2], [Curve("reward", [0.0, 0.5])])
    second = Chart("Reward", "", "iteration", [1, 3], [Curve("reward", [1.0, None])])
    stacked = Chart("Groups", "", "iteration", [1], [], is_stacked=True)
    (chart,) = over_seeds([[first, stacked], [second, stacked]])
    assert chart.x == [1, 2, 3]
    assert chart.curves == [Curve("reward", [0.5, 0.5, None], [0.0, 0.5, None], [1.0, 0.5, None])]


@pytest.mark.parametrize("asked", ["study=none", "variant=ab/none", "variant=ab", "variant=none/sd"])
def test_a_study_or_variant_that_is_not_there_names_those_that_are(pages: TestClient, asked: str) -> None:
    answer = pages.get(f"/compare?{asked}")
    assert answer.status_code == 404
    assert "ab/sd, ab/grpo" in answer.text


def test_the_runs_page_leads_to_the_studies(pages: TestClient) -> None:
    assert 'href="/compare?study=ab"' in pages.get("/").text
    text = pages.get("/compare").text
    assert 'name="variant" value="ab/sd"' in text
    assert "Choose two or more" in text
