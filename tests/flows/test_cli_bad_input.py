"""Bad input on the command line: exit code 2, one clear sentence, no traceback, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from transformers.utils.logging import disable_progress_bar

from flows.app import run_command
from flows.run.model_files import model_folder
from flows.settings.load import load_settings
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.records import make_run

MINI = Path(model_folder("mini"))
Command = Callable[..., str]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.fixture(autouse=True)
def quiet_libraries() -> None:
    """The command quietens transformers before it loads; here other tests may have loaded it already."""
    disable_progress_bar()


@pytest.fixture
def refused(workspace: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command that must be refused and return its one line."""

    def run(*arguments: str) -> str:
        code = run_command([*arguments, "--workspace", str(workspace)])
        captured = capsys.readouterr()
        assert code == 2, captured.err
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert "Traceback" not in captured.err
        return captured.err

    return run


@pytest.fixture
def train_refused(refused: Command) -> Command:
    """Refuse a training run that differs from the tiny one in some settings."""

    def run(*overrides: str) -> str:
        options = [text for override in ("model.torch_threads=1", *overrides) for text in ("--set", override)]
        return refused("train", "tiny", "--no-prefect", "--run", "x", *options)

    return run


def runs_in(workspace: Path) -> list[str]:
    if not workspace.exists():
        return []
    return [record.run for record in Storage(Workspace.open(workspace)).ledger.list_runs()]


def create_run(workspace: Path, run: str) -> Storage:
    storage = Storage(Workspace.open(workspace))
    settings = load_settings("tiny").model_dump_json()
    storage.create_run(make_run(run).model_copy(update={"settings_json": settings}))
    assert storage.sync.flush()
    return storage


def write_rows(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_unknown_settings_file(refused: Command, workspace: Path) -> None:
    message = refused("train", "quikstart")
    assert "no settings file 'quikstart'" in message
    assert "did you mean 'quickstart'?" in message
    assert not workspace.exists()


def test_unknown_key(train_refused: Command, workspace: Path) -> None:
    message = train_refused("update.learning_rat=1")
    assert "unknown setting 'update.learning_rat'; did you mean 'update.learning_rate'?" in message
    assert not workspace.exists()


def test_wrong_type(train_refused: Command, workspace: Path) -> None:
    message = train_refused("iterations=many")
    assert "iterations" in message
    assert "got 'many'" in message
    assert not workspace.exists()


def test_run_name_that_is_a_path(refused: Command, workspace: Path) -> None:
    assert "run name '../x' cannot be used" in refused("train", "tiny", "--run", "../x")
    assert not workspace.exists()


def test_model_folder_without_tokenizer(train_refused: Command, workspace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(MINI / name, folder)
    message = train_refused(f"model.path={folder}")
    assert f"no tokenizer could be read from '{folder}'" in message
    assert "model.path" in message
    assert runs_in(workspace) == []


def test_model_folder_without_weights(train_refused: Command, workspace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MINI, folder)
    (folder / "model.safetensors").unlink()
    assert f"no model could be read from '{folder}'" in train_refused(f"model.path={folder}")
    assert runs_in(workspace) == []


def test_device_that_is_not_there(train_refused: Command, workspace: Path) -> None:
    assert "model.device 'zebra' cannot be used" in train_refused("model.device=zebra")
    assert runs_in(workspace) == []


def test_support_larger_than_the_vocabulary(train_refused: Command, workspace: Path) -> None:
    message = train_refused("distillation.top_k=2049")
    assert "distillation.top_k is 2049, the policy's vocabulary has 2048 tokens; lower top_k" in message
    assert runs_in(workspace) == []


def test_layers_that_are_not_there(train_refused: Command, workspace: Path) -> None:
    message = train_refused("model.tuning=lora", "model.lora_targets=['q_prj']")
    assert "model.lora_targets ['q_prj'] of rank 16: " in message
    assert "'all-linear'" in message
    assert "q_proj" in message
    assert runs_in(workspace) == []


def test_questions_without_answers(train_refused: Command, workspace: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "q.jsonl", {"id": "1", "question": "Who?", "golden_answers": []})
    message = train_refused(f"data.questions={path}")
    assert f"{path}, line 1: 'golden_answers' is []" in message
    assert runs_in(workspace) == []


def test_empty_corpus(train_refused: Command, workspace: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "corpus.jsonl")
    assert f"{path}: the corpus is empty" in train_refused(f"retrieval.corpus={path}")
    assert runs_in(workspace) == []
    assert not (workspace / "indexes").exists()


def test_empty_corpus_for_an_index(refused: Command, workspace: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "corpus.jsonl")
    assert f"{path}: the corpus is empty" in refused("index", "build", "tiny", "--set", f"retrieval.corpus={path}")
    assert not (workspace / "indexes").exists()


def test_split_that_is_not_there(train_refused: Command, workspace: Path) -> None:
    assert "no split 'trian'; choose one of train, dev, test" in train_refused("data.train_split=trian")
    assert runs_in(workspace) == []


def test_name_of_a_run_with_other_settings(train_refused: Command, workspace: Path) -> None:
    ledger = create_run(workspace, "x").ledger
    before = ledger.get_run("x")
    message = train_refused("seed=5")
    assert "run 'x' exists with other settings" in message
    assert "--run" in message
    assert ledger.get_run("x") == before


def test_workspace_that_cannot_be_written(refused: Command, workspace: Path) -> None:
    workspace.write_text("a file in the way", encoding="utf-8")
    message = refused("train", "tiny", "--no-prefect")
    assert f"workspace {workspace} cannot be written" in message
    assert "--workspace" in message
    assert workspace.read_text(encoding="utf-8") == "a file in the way"


@pytest.mark.parametrize("command", [["runs"], ["show", "x"], ["resume", "x"], ["sql", "select 1"]])
def test_workspace_without_a_database(refused: Command, workspace: Path, command: list[str]) -> None:
    assert f"no database in the workspace {workspace}" in refused(*command)
    assert not workspace.exists()


@pytest.mark.parametrize("command", ["show", "resume"])
def test_unknown_run(refused: Command, workspace: Path, command: str) -> None:
    create_run(workspace, "first")
    message = refused(command, "frist")
    assert "no run 'frist'" in message
    assert "did you mean 'first'?" in message


def test_sql_that_does_not_run_or_writes(refused: Command, workspace: Path, tmp_path: Path) -> None:
    create_run(workspace, "first")
    stolen = tmp_path / "stolen.csv"
    assert "sql takes a query or the --name" in refused("sql")
    assert "did you mean 'learning_curve'?" in refused("sql", "--name", "learning_curv")
    assert "needs rollout" in refused("sql", "--name", "rollout_text")
    assert "has no parameter 'rolout'" in refused("sql", "--name", "best_queries", "--param", "rolout=1")
    assert "expected name=value" in refused("sql", "select 1", "--param", "rollout")
    for query in ("delete from runs", f"copy runs to '{stolen}'", "select * from nothing"):
        assert run_command(["sql", query, "--workspace", str(workspace)]) == 2
    assert runs_in(workspace) == ["first"]
    assert not stolen.exists()


def test_policy_and_run_at_once(refused: Command) -> None:
    assert "leave one of them out" in refused("evaluate", "--run", "x", "--policy", "mini")


def test_mini_build_over_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert run_command(["mini", "build", "--out", str(tmp_path)]) == 2
    assert "holds files that are no mini policy" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_schemas_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "file"
    target.write_text("", encoding="utf-8")
    assert run_command(["schema", "--out", str(target)]) == 2
    assert "name another folder with --out" in capsys.readouterr().err


def test_no_prefect_server_where_one_was_named(workspace: Path, tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/api"
    result = sdsearch(tmp_path, ["train", "tiny", "--workspace", str(workspace)], PREFECT_API_URL=url)
    assert_refused(result, f"the Prefect server {url} does not answer", "--no-prefect")
    assert runs_in(workspace) == []


def test_no_address_of_a_prefect_server(workspace: Path, tmp_path: Path) -> None:
    where = ["--workspace", str(workspace)]
    said = "PREFECT_API_URL (or the profile's setting): 'http://h:abc/api' has no port from 1 to 65535; write one"
    for command in ("train", "doctor"):
        result = sdsearch(tmp_path, [command, "tiny", *where], PREFECT_API_URL="http://h:abc/api", COLUMNS="400")
        assert result.returncode == (2 if command == "train" else 1), result.stderr
        assert said in result.stdout + result.stderr
        assert result.stderr.count("\n") == (command == "train")
    assert runs_in(workspace) == []


def test_no_proxy_that_can_be_used(workspace: Path, tmp_path: Path) -> None:
    result = sdsearch(tmp_path, ["train", "tiny", "--workspace", str(workspace)], http_proxy="http://proxy:abc")
    assert_refused(result, "http_proxy of the environment cannot be used: Invalid port: 'abc'; correct it, or unset it")
    assert runs_in(workspace) == []


def test_port_that_another_program_uses(workspace: Path, tmp_path: Path, foreign_port: int) -> None:
    result = sdsearch(tmp_path, ["up", "--port", str(foreign_port), "--workspace", str(workspace)])
    assert_refused(result, f"port {foreign_port} on 127.0.0.1 is used by a program that is no Prefect server", "--port")


def sdsearch(home: Path, arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in its own process: what Prefect reads of the environment it keeps for the process's life."""
    return subprocess.run(
        [sys.executable, "-m", "flows.app", *arguments],
        env={**os.environ, "PREFECT_HOME": str(home / "prefect"), **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def assert_refused(result: subprocess.CompletedProcess[str], *said: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert all(text in result.stderr for text in said)


@pytest.fixture
def foreign_port() -> Iterator[int]:
    """A port where an HTTP server of another kind answers 404 to everything."""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
