"""The pages of `sdsearch inspect` and bad input: missing, damaged, busy and hostile things."""

from __future__ import annotations

import html
import shutil
import socket
import struct
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import uvicorn
from rich.console import Console
from starlette.testclient import TestClient

from flows.inspect.web.server import build_app, inspect
from flows.settings.load import load_settings
from flows.training.job import open_storage
from schemas.errors import UserError
from schemas.records.ledger import StageKey
from schemas.records.rollout import Group
from storage.database.connection import Database
from storage.errors import DatabaseBusyError, WorkspaceError
from storage.workspace import Workspace
from tests.flows.inspect.conftest import group_path
from tests.support.records import all_rows, fill, make_groups, make_run

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'


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
    for path in ("/runs/first", "/runs/first/iterations/1"):
        answer = pages.get(path)
        assert answer.status_code == (200 if path == "/runs/first" else 404)
        assert "sdsearch db rebuild" in answer.text
    of_files = pages.get("/runs/first").text
    assert 'aria-label="sample done, score done, ' in of_files, "what the files have is shown"
    assert "model.path" in of_files
    assert not (workspace / "sdsearch.duckdb").exists(), "a reader makes no database"


def test_a_damaged_database_is_named_and_stays_as_it_is(pages: TestClient, workspace: Path) -> None:
    file = workspace / "sdsearch.duckdb"
    damaged = b"\0" * 4096 + file.read_bytes()[4096:]
    file.write_bytes(damaged)
    answer = pages.get("/runs/first/iterations/1")
    assert answer.status_code == 503
    for text in (answer.text, pages.get("/runs/first").text):
        assert "db rebuild" in text
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


def test_other_names_of_this_machine_are_not_answered(pages: TestClient) -> None:
    assert pages.get("/", headers={"host": "evil.example"}).status_code == 400


def hostile(value: Any, name: str = "") -> Any:
    """Return a record's values with hostile text in every field that a person or a policy can write."""
    if isinstance(value, dict):
        return {key: hostile(each, key) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [hostile(each, name) for each in value]
    return HOSTILE if isinstance(value, str) and name in WRITTEN else value


WRITTEN = {"question", "golden_answers", "category", "text", "query", "answer", "title", "token", "error"}


def test_hostile_text_in_every_field_stays_text(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    groups = [Group.model_validate(hostile(group.model_dump())) for group in make_groups()]
    storage.create_run(make_run().model_copy(update={"settings_json": load_settings("tiny").model_dump_json()}))
    key = StageKey(run="first", iteration=4, stage="sample")
    storage.ledger.fail(storage.ledger.begin(key, "", 1), HOSTILE, "failed")
    fill(Database(Workspace(tmp_path)), all_rows(groups))
    with storage.database.transaction() as connection:
        connection.execute("UPDATE query_credit SET token = ?, teacher_top = [{token_id: 1, token: ?, logprob: -1}], "
                           "student_top = [{token_id: 1, token: ?, logprob: -1}]", [HOSTILE] * 3)  # fmt: skip
        connection.execute("UPDATE hindsight_blocks SET text = ?", [HOSTILE])
        connection.execute("UPDATE evaluation_answers SET question = ?, answer = ?, queries = [?]", [HOSTILE] * 3)
        connection.execute("UPDATE stages SET error = ?", [HOSTILE])
    rollout = groups[0].rollouts[0]
    with TestClient(build_app(Workspace(tmp_path)), base_url="http://127.0.0.1") as client:
        for path in (
            "/runs/first",
            "/runs/first/iterations/3",
            "/runs/first/iterations/4",
            f"/runs/first/iterations/3/groups/{quote(groups[0].id, safe='')}",
            f"/runs/first/iterations/3/rollouts/{quote(rollout.id, safe='')}",
            f"/runs/first/questions/{quote(groups[0].question.key, safe='')}",
            "/compare?run=first",
        ):
            answer = client.get(path)
            assert answer.status_code == 200, answer.text
            for tag in ("<script>alert", "<img", 'alert("x")'):
                assert tag not in answer.text, path
            if not path.startswith("/compare"):
                assert "&lt;script&gt;alert" in answer.text, path


@pytest.mark.parametrize("has_database", [False, True])
def test_a_run_without_iterations_is_shown(tmp_path: Path, has_database: bool) -> None:
    storage = open_storage(tmp_path)
    storage.create_run(make_run().model_copy(update={"settings_json": load_settings("tiny").model_dump_json()}))
    assert storage.sync.flush() if has_database else True
    with TestClient(build_app(Workspace(tmp_path)), base_url="http://127.0.0.1") as client:
        run, groups = client.get("/runs/first"), client.get("/runs/first/iterations/1")
    assert run.status_code == 200
    assert "sample not begun, " in run.text
    if has_database:
        assert "No stage has ended yet." in run.text
        assert "No group fits" in groups.text
    else:
        assert "a first run makes it when its first stages have ended" in run.text


def test_a_browser_that_closes_in_the_middle_leaves_the_server_at_work(workspace: Path) -> None:
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_app(Workspace(workspace)), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    port = bound.getsockname()[1]
    try:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as browser:
                browser.sendall(b"GET /runs/first HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        answer = httpx.get(f"http://127.0.0.1:{port}/runs/first", timeout=60)
        assert answer.status_code == 200
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


def test_no_workspace_and_one_of_another_layout_are_one_line(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no database in the workspace .*none"):
        inspect(None, tmp_path / "none", 0, Console(), opens_browser=False)
    (workspace / "layout.json").write_text('{"layout": 99}', encoding="utf-8")
    with pytest.raises(WorkspaceError, match="has files of layout 99"):
        inspect(None, workspace, 0, Console(), opens_browser=False)


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
    for path, status in (("/runs/first", 200), ("/runs/first/iterations/1", 503)):
        answer = pages.get(path)
        assert answer.status_code == status
        assert 'data-live="retry"' in answer.text
        assert "kept open by process 1" in answer.text
    assert "kept open by process 1" in pages.get("/").text, "the runs are listed all the same"
