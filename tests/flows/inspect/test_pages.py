"""The pages of `sdsearch inspect`: what they show of a real run, of damaged and missing things, and of hostile text."""

from __future__ import annotations

import html
import json
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from rich.console import Console
from starlette.testclient import TestClient

from flows.inspect.web.groups import FILTERS, SORTS
from flows.inspect.web.server import build_app, inspect
from flows.settings.load import load_settings
from flows.training.job import open_storage
from schemas.errors import UserError
from storage.database.connection import Database
from storage.errors import DatabaseBusyError
from storage.workspace import Workspace
from tests.flows.inspect.conftest import group_path, rows
from tests.support.records import all_rows, fill, make_groups, make_run

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'


@pytest.fixture
def pages(workspace: Path) -> Iterator[TestClient]:
    with TestClient(build_app(Workspace(workspace)), base_url="http://127.0.0.1") as client:
        yield client


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


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/runs/other", "other"),
        ("/runs/first/iterations/1/groups/none", "run 'first' has no group 'none' in iteration 1"),
        ("/runs/first/iterations/9/rollouts/none", "has no rollout 'none' in iteration 9"),
        ("/runs/first/questions/none", "has not sampled the question 'none'"),
        ("/runs/first/iterations/1?filter=odd", "no filter 'odd'"),
        ("/compare?run=first&run=other", "other"),
    ],
)
def test_what_is_not_there_is_said(pages: TestClient, path: str, says: str) -> None:
    answer = pages.get(path)
    assert answer.status_code == 404
    assert says in html.unescape(answer.text)


def test_a_workspace_without_its_database_names_the_command_and_shows_the_runs(
    pages: TestClient, workspace: Path
) -> None:
    for file in workspace.glob("sdsearch.duckdb*"):
        file.unlink()
    assert "first" in pages.get("/").text
    answer = pages.get("/runs/first")
    assert answer.status_code == 404
    assert "sdsearch db rebuild" in answer.text
    assert not (workspace / "sdsearch.duckdb").exists(), "a reader makes no database"


def test_a_damaged_database_is_named_and_stays_as_it_is(pages: TestClient, workspace: Path) -> None:
    file = workspace / "sdsearch.duckdb"
    damaged = b"\0" * 4096 + file.read_bytes()[4096:]
    file.write_bytes(damaged)
    answer = pages.get("/runs/first")
    assert answer.status_code == 503
    assert "db rebuild" in answer.text
    assert file.read_bytes() == damaged


def test_a_group_whose_files_are_gone_is_shown_from_the_database(pages: TestClient, workspace: Path) -> None:
    path = group_path(workspace)
    whole = pages.get(path).text
    for folder in workspace.glob("artifacts/run=first/iteration=*"):
        shutil.rmtree(folder)
    answer = pages.get(path)
    assert answer.status_code == 200
    assert answer.text == whole


def test_credit_of_an_earlier_version_is_shown_without_most_probable_tokens(pages: TestClient, workspace: Path) -> None:
    with open_storage(workspace).database.transaction() as connection:
        connection.execute("UPDATE query_credit SET teacher_top = [], student_top = []")
    text = pages.get(group_path(workspace)).text
    assert "kept no most probable tokens" in text
    assert 'class="token r' in text


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


def test_other_names_of_this_machine_are_not_answered(pages: TestClient) -> None:
    assert pages.get("/", headers={"host": "evil.example"}).status_code == 400


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    groups = [
        group.model_copy(update={"question": group.question.model_copy(update={"question": HOSTILE})})
        for group in make_groups()
    ]
    storage.create_run(make_run().model_copy(update={"settings_json": load_settings("tiny").model_dump_json()}))
    fill(Database(Workspace(tmp_path)), all_rows(groups))
    with TestClient(build_app(Workspace(tmp_path)), base_url="http://127.0.0.1") as client:
        for path in (
            "/runs/first",
            "/runs/first/iterations/3",
            f"/runs/first/iterations/3/groups/{quote(groups[0].id, safe='')}",
        ):
            answer = client.get(path)
            assert answer.status_code == 200, answer.text
            assert "<script>alert" not in answer.text
            assert "<img" not in answer.text
        assert html.escape(HOSTILE) in answer.text.replace("&#34;", "&quot;")


def test_a_port_in_use_and_a_run_that_is_not_there_are_one_line(workspace: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 cannot be used"):
            inspect(None, workspace, port, Console(), opens_browser=False)
    with pytest.raises(UserError, match="other"):
        inspect("other", workspace, 0, Console(), opens_browser=False)


def test_a_page_says_that_the_database_is_in_use_and_tries_again(
    pages: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*arguments: object) -> object:
        raise DatabaseBusyError("kept open by process 1")

    monkeypatch.setattr(Database, "read", busy)
    answer = pages.get("/runs/first")
    assert answer.status_code == 503
    assert 'data-live="retry"' in answer.text
    assert "kept open by process 1" in answer.text
    assert "kept open by process 1" in pages.get("/").text, "the runs are listed all the same"
