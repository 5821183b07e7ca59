"""A reader who goes ends the printing, never the work; and no character or closed stream ends a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.database.connection import Database
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.workspace import Workspace
from tests.support.records import make_run

SDSEARCH = [sys.executable, "-m", "flows.app"]
SMALL = ("iterations=1", "data.questions_per_iteration=2", "evaluation.num_questions=2", 'evaluation.modes=["greedy"]')
# Works for a while and shows it as a run does, with bars where the output is a terminal.
WORKER = """
import sys, time
from pathlib import Path
from flows.console.streams import prepare_streams
prepare_streams()
from flows.console.options import make_console
from flows.run.progress import RichReporter
from flows.settings.load import load_settings
with RichReporter(None, make_console()) as reporter:
    reporter.run_started("first", load_settings("tiny"), 1)
    for iteration in range(1, 6):
        time.sleep(0.2)
        print("a library's own line", flush=True)
        print("and a warning", file=sys.stderr, flush=True)
        reporter.iteration_done(iteration, {"em": 0.5})
    reporter.run_done("first")
sys.stdout.flush()
Path(sys.argv[1]).write_text("finished")
"""


def record_of(workspace: Path, run: str) -> str:
    return Ledger(ArtifactStore(Workspace.open(workspace))).get_run(run).status


def test_a_run_whose_reader_goes_is_done(tmp_path: Path) -> None:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    command = [*SDSEARCH, "train", "tiny", "--no-prefect", "--run", "first", "--workspace", str(tmp_path), *settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "run first: 1 iterations, model mini\n"
        process.stdout.close()
        process.stderr.close()
    assert process.returncode == 0
    assert record_of(tmp_path, "first") == "done"


def work(tmp_path: Path, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TERM": "xterm-256color"}
    words = [sys.executable, "-c", WORKER, str(tmp_path / "end")]
    return subprocess.Popen(words, stdout=stdout, stderr=stderr, env=environment, start_new_session=True)


@pytest.mark.parametrize("kind", ["terminal", "pipe", "only stderr"])
def test_work_goes_on_unread(kind: str, tmp_path: Path) -> None:
    ours, theirs = os.openpty() if kind == "terminal" else os.pipe()
    with open(tmp_path / "log", "wb") as log:
        process = work(tmp_path, log.fileno() if kind == "only stderr" else theirs, theirs)
    os.close(theirs)
    assert os.read(ours, 1)
    os.close(ours)
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "end").read_text() == "finished"
    if kind == "only stderr":
        assert b"run first done" in (tmp_path / "log").read_bytes(), "the other stream is printed to the end"


def test_a_full_disk_under_the_output_is_told_once_and_ends_no_work(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        process = work(tmp_path, full.fileno(), subprocess.PIPE)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "end").read_text() == "finished"
    assert said.count(b"No space left on device") == 1


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    opened = Workspace.open(tmp_path_factory.mktemp("work\u00e4\u20ac"))
    settings = json.dumps({"model": {"path": "\u00e4\u20ac\ud83d\ude00 \udcff"}})
    Ledger(ArtifactStore(opened)).create_run(make_run("first").model_copy(update={"settings_json": settings}))
    assert Database(opened).query("SELECT * FROM runs").num_rows == 0
    return opened.root


def shell(script: str, workspace: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `sdsearch` is the program; its pipes have the exit code of what fails first."""
    sdsearch = f'sdsearch() {{ "{sys.executable}" -m flows.app "$@"; }}; set -o pipefail; {script}'
    wanted = {**os.environ, "SDSEARCH_HOME": str(workspace), **environment}
    return subprocess.run(["bash", "-c", sdsearch], env=wanted, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("sdsearch sql 'FROM range(200000)' --format csv | head -1", 141, ""),
        ("sdsearch runs | true", 141, ""),
        ("sdsearch runs >&-", 0, ""),
        ("sdsearch runs > /dev/full", 2, "error: the output cannot be written: No space left on device"),
        ("sdsearch nothing 2>&-", 2, ""),
    ],
)
def test_a_command_that_only_prints_ends_with_its_reader(script: str, code: int, said: str, workspace: Path) -> None:
    ended = shell(script, workspace)
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.startswith(said)
    assert ended.stderr.count("\n") == bool(said)


@pytest.mark.parametrize(
    ("query", "printed"),
    [
        ("--format json", '{"\\u00f6":"\\u20ac\\ud83d\\ude00"}'),
        ("--format csv", "\\xf6\n\\u20ac\\U0001f600"),
        ("", "\\u20ac\\U0001f600"),
    ],
)
def test_what_the_output_cannot_encode_is_an_escape(query: str, printed: str, workspace: Path) -> None:
    script = f"sdsearch sql 'SELECT chr(8364) || chr(128512) AS \"\u00f6\"' {query}; sdsearch runs; sdsearch show no"
    ended = shell(script, workspace, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ended.returncode == 2
    assert printed in ended.stdout
    assert "\\xe4\\u20ac\\U0001f600 \\udcff" in ended.stdout, "the model's path"
    assert ended.stderr.startswith("error: no run 'no' in this workspace")
    assert ended.stderr.count("\n") == 1
