"""`sdsearch ask` as a person types it: a prompt that goes on, pipes, Ctrl-C, and errors of one line."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.app import run_command
from schemas.records.run_kind import ReplayKind
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.fakes import FixedRetriever
from tests.support.records import make_run
from tests.support.serving import serving
from tests.support.typing_in import on_a_terminal

NORWAY = "What is the capital of Norway?"


def test_a_prompt_goes_on_until_ctrl_d(workspace: Path) -> None:
    typed = [
        ("question: ", f"{NORWAY}\n"),
        ("tokens/s)", ""),
        ("question: ", f"{'long ' * 400}\n"),
        ("question: ", "\x04"),
    ]
    shown = on_a_terminal(["ask", "--workspace", str(workspace)], typed)
    assert shown.code == 0, shown.text
    assert "run first, version 1, the newest finished run; another one with --run NAME" in shown.text
    assert "\x1b[2m<search>\x1b[0m" in shown.text
    assert "answer: " in shown.text
    assert "error: the prompt of the question has " in shown.text, "and the prompt goes on"


@pytest.mark.parametrize("end", ["\n", "exit\n"])
def test_a_prompt_ends_at_an_empty_line_or_exit(workspace: Path, end: str) -> None:
    shown = on_a_terminal(["ask", "--workspace", str(workspace)], [("question: ", end)])
    assert (shown.code, shown.text.count("question: ")) == (0, 1)


def test_ctrl_c_at_the_prompt(workspace: Path) -> None:
    shown = on_a_terminal(["ask", "--workspace", str(workspace)], [("question: ", "\x03")])
    assert shown.code == 130
    assert shown.text.endswith("question: ^C\r\ninterrupted\r\n")


def test_lines_of_standard_input_are_questions(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error is told, the next question is asked, and the exit code says that something failed."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{NORWAY}\n\n{'long ' * 400}\nWhat is the capital of Peru?"))
    assert run_command(["ask", "--json", "--workspace", str(workspace)]) == 2
    said = capsys.readouterr()
    ends = [step for step in map(json.loads, said.out.splitlines()) if step["kind"] == "end"]
    assert [step["question"] for step in ends] == [NORWAY, "What is the capital of Peru?"]
    assert said.err.splitlines()[-1].startswith("error: the prompt of the question has ")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{NORWAY}\n"))
    assert run_command(["ask", "--workspace", str(workspace)]) == 0


def http_config(folder: Path, url: str) -> Path:
    path = folder / "http.toml"
    retrieval = f'kind = "http"\nurls = ["{url}"]\nmax_attempts = 1\ncache = false\n'
    path.write_text(f'base = "tiny"\n[retrieval]\n{retrieval}', encoding="utf-8")
    return path


class _Slow(FixedRetriever):
    """Answers no query in the time that a person waits."""

    def search(self, queries: list[str], top_k: int) -> list:  # type: ignore[override]
        time.sleep(20)
        return super().search(queries, top_k)


def test_ctrl_c_ends_the_answer_under_way(tmp_path: Path) -> None:
    with serving(_Slow()) as url:
        config = http_config(tmp_path, url)
        words = ["ask", NORWAY, "--policy", "mini", "--config", str(config), "--workspace", str(tmp_path / "w")]
        process = subprocess.Popen([sys.executable, "-m", "flows.app", *words], stdout=-1, stderr=-1, text=True)
        assert process.stdout is not None
        read = ""
        while "</search>" not in read:
            read += process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=15)
        assert (process.returncode, said) == (130, "interrupted\n")
        assert "answer" not in rest


def test_a_retriever_that_dies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Dying(FixedRetriever):
        def search(self, queries: list[str], top_k: int) -> list:  # type: ignore[override]
            raise RuntimeError("the disk is gone")

    with serving(Dying()) as url:
        words = [NORWAY, "--policy", "mini", "--config", str(http_config(tmp_path, url))]
        refused = ask_error(capsys, tmp_path / "w", *words)
    assert refused.startswith("error: the retriever failed on query ")
    assert "the disk is gone" in refused
    assert refused.endswith("; repair it, then ask again")
    assert "start it, or correct retrieval.urls" in ask_error(capsys, tmp_path / "w", *words)


def ask_error(capsys: pytest.CaptureFixture[str], workspace: Path, *words: str) -> str:
    """Return the one line that a refused question ends in."""
    capsys.readouterr()
    assert run_command(["ask", *words, "--workspace", str(workspace)]) == 2
    lines = capsys.readouterr().err.splitlines()  # Other tests may have imported libraries with their bars.
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def test_errors_are_one_line(workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(workspace, tmp_path / "copy")
    copy = Workspace(tmp_path / "copy")
    (weights,) = copy.checkpoint("first", 1).glob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    storage = Storage(copy)
    storage.create_run(make_run("again").model_copy(update={"kind": ReplayKind(source="first", first=1, last=1)}))

    def error(*words: str) -> str:
        return ask_error(capsys, copy.root, *words)

    assert error(" ", "--run", "first").startswith(
        "error: the question is empty; expected a text, such as: sdsearch ask"
    )
    assert error("a\udce9", "--run", "first").startswith("error: the question is no valid text")
    assert error(NORWAY, "--run", "nope").startswith("error: no run 'nope' in this workspace; it has: again, first")
    assert error(NORWAY, "--hindsight", "nope").startswith("error: no run 'nope' in this workspace; it has: ")
    assert "is a replay and trains nothing; name the run that sampled: first" in error(NORWAY, "--run", "again")
    assert "model.safetensors" in error(NORWAY, "--run", "first")
    assert "leave one of them out" in error(NORWAY, "--run", "first", "--policy", "mini")
    assert "ask --run takes the run's own settings" in error(NORWAY, "--set", "rollout.temperature=2")
    assert "no tokenizer could be read from" in error(NORWAY, "--policy", str(tmp_path / "nowhere"))
    assert "no database in the workspace" in ask_error(capsys, tmp_path / "nowhere", NORWAY)
    assert not (tmp_path / "nowhere").exists()
