"""The pages of `sdsearch inspect`: what they show of a real run."""

from __future__ import annotations

import html
import inspect as inspect_module
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from flows.evaluation.stage import evaluate_policy
from flows.inspect.web.dag import READS
from flows.inspect.web.groups import FILTERS, SORTS
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.stages.hindsight import build_hindsight
from flows.training.stages.sample import sample_groups
from flows.training.stages.score import score_rollouts
from flows.training.stages.teacher import compute_teacher
from flows.training.stages.update import update_weights
from schemas.records.ledger import StageKey
from schemas.records.run_kind import EvaluationKind, ForkKind, ReplayKind, TrainingKind
from storage.runs.lock import RunLock
from tests.flows.inspect.conftest import group_path, judge, rows, told
from tests.support.records import make_run


def test_every_page_of_a_trained_run_is_shown_and_keeps_to_itself(pages: TestClient, workspace: Path) -> None:
    (question, rollout) = rows(workspace, "SELECT question_key, rollout_id FROM rollouts ORDER BY ALL LIMIT 1")[
        0
    ].values()
    paths = [
        "/",
        "/runs/first",
        "/runs/first/iterations/1",
        group_path(workspace),
        f"/runs/first/iterations/1/rollouts/{quote(rollout, safe='')}",
        f"/runs/first/questions/{quote(question, safe='')}",
        "/compare?run=first",
    ]
    for path in paths:
        answer = pages.get(path)
        assert answer.status_code == 200, (path, answer.text)
        assert 'class="problem"' not in answer.text, path
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "style=" not in answer.text, "the policy lets no page bring its own styles"
        assert "http://" not in answer.text.replace("http://127.0.0.1", ""), "nothing is loaded from elsewhere"


def test_a_group_shows_each_credited_token_with_its_numbers(pages: TestClient, workspace: Path) -> None:
    path = group_path(workspace, "teacher_logprob - student_logprob > 0.3")
    iteration, group = path.split("/")[4], html.unescape(path.split("/")[6]).replace("%2F", "/").replace("%3A", ":")
    text = pages.get(path).text
    credit = rows(workspace, f"SELECT * FROM query_credit WHERE iteration = {iteration} AND group_id = '{group}'")
    assert len(credit) > 3
    assert text.count('class="token r') == len(credit)
    readings = [json.loads(each) for each in re.findall("data-reading='([^']*)'", text)]
    assert len(readings) == len(credit)
    for row in credit:
        said = next(each for each in readings if each["teacher_logprob"] == row["teacher_logprob"])
        assert (said["token"], said["student_logprob"], said["jsd"]) == (
            row["token"].replace(" ", "␣"), row["student_logprob"], row["jsd"]
        )  # fmt: skip
        for side in ("teacher", "student"):
            top = row[f"{side}_top"]
            assert [logprob for _, logprob, _ in said[side]] == [each["logprob"] for each in top]
            sampled = [each["token_id"] == row["token_id"] for each in top]
            assert [is_sampled for _, _, is_sampled in said[side]] == sampled
    for (answer,) in (
        row.values() for row in rows(workspace, f"SELECT answer FROM rollouts WHERE group_id = '{group}'")
    ):
        assert answer is None or html.escape(answer) in text


def test_the_runs_page_says_where_each_run_stands_and_how_to_go_on(pages: TestClient, workspace: Path) -> None:
    storage, settings = open_storage(workspace), load_settings("tiny").model_dump_json()
    now = datetime.now(UTC)
    going = {"iterations_done": 2, "created_at": now - timedelta(minutes=10), "updated_at": now}
    kinds = {
        "going": TrainingKind(), "stopped": TrainingKind(), "again": ReplayKind(source="first", first=1, last=2),
        "branch": ForkKind(source="first", first_iteration=2), "checked": EvaluationKind(source="first", version=2),
    }  # fmt: skip
    for run, kind in kinds.items():
        status = {"going": "running", "stopped": "failed"}.get(run, "done")
        changes = {"settings_json": settings, "kind": kind, "status": status, **going}
        storage.create_run(make_run(run).model_copy(update=changes))
    with RunLock(storage.workspace, "going"):
        text = html.unescape(pages.get("/").text)
    rows_shown = {run: text[text.index(f'value="{run}"') :].split("</tr>")[0] for run in kinds}
    assert re.search(r">running<.*>2/10<.*>(39 min|40 min)[^<]*<", rows_shown["going"], re.DOTALL), (
        "8 iterations of 5 min"
    )
    assert f"sdsearch resume stopped --workspace {workspace}" in text
    assert "sdsearch resume going" not in text
    for run in ("again", "branch", "checked"):
        assert kinds[run].title in rows_shown[run]
        assert run in pages.get("/runs/first").text, "the source names what builds on it"
    (em,) = rows(workspace, "SELECT em FROM evaluations WHERE mode = 'greedy' AND updates_done = 2")
    assert f"{em['em']:.3f}" in text[text.index('value="first"') :].split("</tr>")[0]


def test_the_table_of_evaluations_says_what_they_were_made_under(pages: TestClient, workspace: Path) -> None:
    text = html.unescape(pages.get("/runs/first").text)
    lines = told(workspace)
    assert len(lines) >= 2, "greedy and sampled"
    for line in lines:
        assert text.count(line) == 1
    assert "<th>judge</th>" not in text
    judge(workspace)
    text = pages.get("/runs/first").text
    assert "<th>judge</th>" in text
    assert text.count('<td class="n">0.123</td>') == len(rows(workspace, "SELECT * FROM evaluations"))
    with open_storage(workspace).database.transaction() as connection:
        connection.execute("DELETE FROM evaluation_conditions")
    assert "searched: world" not in pages.get("/runs/first").text, "of an earlier version"


def test_a_run_has_every_curve(pages: TestClient) -> None:
    charts = json.loads(re.findall(r'id="chart-data">(.*?)</script>', pages.get("/runs/first").text)[0])
    curves = {chart["title"]: [curve["label"] for curve in chart["curves"]] for chart in charts}
    stages = ["sample", "score", "hindsight", "teacher", "update", "evaluate"]
    assert curves == {
        "Dev EM": ["greedy", "sampled"], "Dev F1": ["greedy", "sampled"], "Reward": ["reward"],
        "Search quality": ["search quality"], "Searches": ["searches"], "Valid rollouts": ["valid"],
        "Distillation loss L_SD": ["L_SD"], "KL to the reference": ["KL"], "Entropy gap": ["gap"],
        "Gradient norm ratio": ["ratio"], "Log-ratio": ["CORRECT", "INCORRECT"],
        "Tokens per second": ["sample", "teacher", "update"],
        "Groups": ["all CORRECT", "mixed", "all INCORRECT"], "Seconds by stage": stages,
    }  # fmt: skip
    assert all(curve["low"] and curve["high"] for chart in charts[:2] for curve in chart["curves"])
    assert {chart["title"] for chart in charts if chart["stacked"]} == {"Groups", "Seconds by stage"}


def test_siblings_have_reasons_cuts_golden_answers_and_the_passages_that_others_found_too(
    pages: TestClient, workspace: Path
) -> None:
    shared = rows(
        workspace,
        "SELECT iteration, group_id, title, count(DISTINCT rollout_id) AS n "
        "FROM (SELECT iteration, group_id, rollout_id, unnest(titles) AS title FROM searches) "
        "GROUP BY ALL HAVING n > 1 ORDER BY n DESC, iteration, group_id, title LIMIT 1",
    )[0]
    with open_storage(workspace).database.transaction() as connection:
        connection.execute("UPDATE turns SET num_tokens_cut = 17 WHERE observation_kind = 'documents'")
    group, iteration = shared["group_id"], shared["iteration"]
    text = html.unescape(pages.get(f"/runs/first/iterations/{iteration}/groups/{quote(group, safe='')}").text)
    marked = rf">{re.escape(shared['title'])} <b title=\"so many siblings retrieved it\">×{shared['n']}</b>"
    assert len(re.findall(marked, text)) >= shared["n"], "marked at each of the siblings"
    assert "17 tokens cut" in text
    for row in rows(workspace, f"SELECT * FROM rollouts WHERE group_id = '{group}'"):
        assert f"ends by {row['stop_reason']}" in text
        assert f"reward {row['reward']:.3f} · advantage {row['advantage']:+.2f}" in text


def test_golden_answers_are_marked_in_documents_and_in_answers(pages: TestClient, workspace: Path) -> None:
    found = rows(
        workspace,
        "SELECT any_value(iteration) AS iteration, group_id, any_value(golden_answers) AS golden FROM v_rollouts "
        "WHERE num_golden_hits > 0 GROUP BY group_id ORDER BY group_id",
    )
    assert found
    for row in found:
        text = pages.get(f"/runs/first/iterations/{row['iteration']}/groups/{quote(row['group_id'], safe='')}").text
        documents = html.unescape("".join(re.findall(r'class="text environment">(.*?)</p>', text, re.DOTALL)))
        assert any(f"<mark>{answer.lower()}</mark>" in documents.lower() for answer in row["golden"])
    right = rows(workspace, "SELECT iteration, group_id FROM rollouts WHERE em = 1 ORDER BY ALL LIMIT 1")[0]
    text = pages.get(f"/runs/first/iterations/{right['iteration']}/groups/{quote(right['group_id'], safe='')}").text
    assert re.search(r'<span class="answer">[^<]*<mark>', text)


@pytest.mark.parametrize("order", SORTS)
@pytest.mark.parametrize("chosen", FILTERS)
def test_filters_and_orders_find_what_they_say(pages: TestClient, workspace: Path, chosen: str, order: str) -> None:
    retried = "iteration = 2 AND group_id = (SELECT min(group_id) FROM searches WHERE iteration = 2)"
    with open_storage(workspace).database.transaction() as connection:
        connection.execute(f"UPDATE searches SET num_retries = 3 WHERE {retried}")
    conditions = {
        "all": "true",
        "mixed": "count(*) FILTER (outcome = 'CORRECT') BETWEEN 1 AND count(*) - 1",
        "all_wrong": "count(*) FILTER (outcome = 'CORRECT') = 0",
        "all_right": "count(*) FILTER (outcome = 'CORRECT') = count(*)",
        "no_search": "count(*) FILTER (len(queries) = 0) > 0",
        "truncated": "count(*) FILTER (rollout_id IN (SELECT rollout_id FROM turns WHERE stop_reason = 'length')) > 0",
        "malformed": "sum(num_malformed) > 0",
        "retried": "count(*) FILTER (rollout_id IN (SELECT rollout_id FROM searches WHERE num_retries > 0)) > 0",
        "no_answer": "count(*) FILTER (answer IS NULL) > 0",
    }
    expected = rows(
        workspace, f"SELECT group_id FROM rollouts WHERE iteration = 2 GROUP BY group_id HAVING {conditions[chosen]}"
    )
    text = pages.get(f"/runs/first/iterations/2?filter={chosen}&sort={order}").text
    shown = {
        row["group_id"]
        for row in rows(workspace, "SELECT group_id FROM groups")
        if quote(row["group_id"], safe="") in text
    }
    assert shown == {row["group_id"] for row in expected}
    assert len(shown) == 1 or chosen != "retried"


def test_words_are_found_in_questions_queries_and_answers(pages: TestClient, workspace: Path) -> None:
    (query,) = rows(workspace, "SELECT query FROM searches WHERE iteration = 1 ORDER BY length(query) DESC LIMIT 1")[
        0
    ].values()
    text = pages.get("/runs/first/iterations/1", params={"q": query.upper()}).text
    assert "/groups/" in text
    assert "No group fits" in pages.get("/runs/first/iterations/1?q=no such words").text


def test_the_version_changes_with_the_run_alone(pages: TestClient, workspace: Path) -> None:
    before = pages.get("/version?run=first").json()
    assert pages.get("/version?run=first").json() == before
    storage = open_storage(workspace)
    record = storage.ledger.get_run("first")
    storage.update_run(record.model_copy(update={"updated_at": record.updated_at.replace(year=2030)}))
    assert pages.get("/version?run=first").json() != before


def test_the_version_changes_when_a_stage_of_the_next_iteration_begins(pages: TestClient, workspace: Path) -> None:
    before = pages.get("/version").json()
    folder = next(workspace.rglob("iteration=00002")).with_name("iteration=00003")
    (folder / "stage=sample").mkdir(parents=True)
    (folder / "stage=sample" / "stage.json").write_text("{}", encoding="utf-8")
    assert pages.get("/version").json() != before


def test_a_stage_under_way_and_one_that_failed_stand_in_the_graph(pages: TestClient, workspace: Path) -> None:
    ledger = open_storage(workspace).ledger
    begun = {
        stage: ledger.begin(StageKey(run="first", iteration=3, stage=stage), "", 1) for stage in ("sample", "score")
    }
    ledger.fail(begun["sample"], "the retriever is down", "failed")
    text = pages.get("/runs/first").text
    assert 'aria-label="sample failed, score running, hindsight not begun, ' in text
    assert "sample, attempt 1: the retriever is down" in text
    done = pages.get("/runs/first/iterations/2").text
    assert 'aria-label="sample done, score done, hindsight done, teacher done, update done, evaluate' in done


def test_the_graph_has_a_line_for_each_stage_that_another_reads() -> None:
    """The stages' own code says what each reads: the records that its function takes."""
    functions = {
        "sample": sample_groups, "score": score_rollouts, "hindsight": build_hindsight, "teacher": compute_teacher,
        "update": update_weights, "evaluate": evaluate_policy,
    }  # fmt: skip
    named = {"sampled": "sample", "scored": "score", "blocks": "hindsight", "targets": "teacher", "updated": "update"}
    for stage, function in functions.items():
        taken = [named[name] for name in inspect_module.signature(function).parameters if name in named]
        if stage == "evaluate":
            taken = ["update"]  # Its policy's update, whichever that is.
        assert list(READS[stage]) == taken, stage
