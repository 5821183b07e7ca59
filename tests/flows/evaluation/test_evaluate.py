"""`sdsearch evaluate`: seven data sets in every public form, what is kept of them, and going on when interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import flows.evaluation.stage
from flows.app import run_command
from schemas.records.evaluation import EvaluationAnswer
from schemas.records.question import Question
from sdsearch.evaluation.answering import Asking, answer_questions
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.question_files import SEVEN, write_seven_sets

SIZES = (6, 2, 2, 1, 1, 1, 1)
_ROWS = {
    "evaluations": "SELECT * EXCLUDE (run) FROM evaluations WHERE run = $run ORDER BY ALL",
    "evaluation_answers": "SELECT * EXCLUDE (run) FROM evaluation_answers WHERE run = $run ORDER BY ALL",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seven_sets(tmp_path_factory.mktemp("seven"), SIZES)


def rows(workspace: Path, run: str, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = Storage(Workspace(workspace)).database.query(_ROWS[name], {"run": run}).to_pylist()
    return found


def evaluate(config: Path, workspace: Path, *options: str) -> int:
    return run_command(["evaluate", "--config", str(config), "--workspace", str(workspace), *options])


def printed_table(text: str) -> dict[str, list[str]]:
    lines = [line.split() for line in text.splitlines()]
    return {
        " ".join(line[:1] if line[0] in SEVEN else line[:3]): line
        for line in lines
        if len(line) > 9 and line[0] != "answers:"
    }


class Interrupted:
    """Answers as the program does, until so many batches are done."""

    def __init__(self, num_batches: int) -> None:
        self.left = num_batches
        self.answered: list[str] = []

    def __call__(self, loop: Any, questions: Sequence[Question], asking: Asking) -> list[EvaluationAnswer]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.answered += [question.key for question in questions]
        return answer_questions(loop, questions, asking)


def refuses_the_name_of_another(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An evaluation 'cut' is there: no training, no policy, and no evaluation with other settings."""
    capsys.readouterr()
    for command in (["train", str(config), "--run", "cut", "--no-prefect"], ["evaluate", "--run", "cut"]):
        assert run_command([*command, "--workspace", str(tmp_path)]) == 2
    assert evaluate(config, tmp_path, "--datasets", "nq", "--name", "cut") == 2
    refusals = capsys.readouterr().err.splitlines()
    assert "run 'cut' exists with other settings" in refusals[0]
    assert "run 'cut' is an evaluation itself" in refusals[1]
    assert "exists with other settings (data.test" in refusals[2]


def test_seven_sets_are_answered_kept_and_gone_on_with(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of four: the first data set has two of them, the others one each."""
    assert evaluate(config, tmp_path, "--datasets", "all", "--name", "whole") == 0
    table = printed_table(capsys.readouterr().out)
    reports = {row["dataset"]: row for row in rows(tmp_path, "whole", "evaluations")}
    assert {name: row["split"] for name, row in reports.items()} == SEVEN
    assert [reports[name]["num_questions"] for name in SEVEN] == list(SIZES)
    for name, report in reports.items():
        assert table[name][1:4] == [report["split"], str(report["num_questions"]), f"{report['em']:.3f}"]
        low, high = float(table[name][4]), float(table[name][6])
        assert low <= report["em"] <= high
    mean = sum(report["em"] for report in reports.values()) / 7
    assert 0 < mean < 1, "the figures must tell the sets apart"
    assert table["mean of 7"][3:5] == [str(sum(SIZES)), f"{mean:.3f}"]
    answers = rows(tmp_path, "whole", "evaluation_answers")
    assert len({answer["question_key"] for answer in answers}) == len(answers) == sum(SIZES)
    assert all(answer["question_key"].startswith(f"{answer['dataset']}:") for answer in answers)

    monkeypatch.setattr(flows.evaluation.stage, "answer_questions", Interrupted(5))
    assert evaluate(config, tmp_path, "--datasets", "all", "--name", "cut") == 130
    assert "continue with: sdsearch resume cut --workspace" in capsys.readouterr().out
    rest = Interrupted(99)
    monkeypatch.setattr(flows.evaluation.stage, "answer_questions", rest)
    assert run_command(["resume", "cut", "--workspace", str(tmp_path)]) == 0
    assert [key.partition(":")[0] for key in rest.answered] == ["2wikimultihopqa", "musique", "bamboogle"]
    assert printed_table(capsys.readouterr().out) == table
    for name in _ROWS:
        assert rows(tmp_path, "cut", name) == rows(tmp_path, "whole", name)
    assert list((tmp_path / "artifacts").rglob("partial-*")) == []
    (tmp_path / "sdsearch.duckdb").unlink()
    assert run_command(["db", "rebuild", "--workspace", str(tmp_path)]) == 0
    assert rows(tmp_path, "cut", "evaluation_answers") == answers

    monkeypatch.setattr(flows.evaluation.stage, "answer_questions", Interrupted(0))
    assert evaluate(config, tmp_path, "--datasets", "all", "--name", "cut") == 0, "nothing is left to answer"
    path = config.parent / "bamboogle.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("?", "??"), encoding="utf-8")
    capsys.readouterr()
    assert evaluate(config, tmp_path, "--datasets", "all", "--name", "cut") == 2, "other questions are another's"
    refusal = capsys.readouterr().err
    assert "the questions of bamboogle:test in " in refusal
    assert "evaluate under another --name" in refusal
    assert evaluate(config, tmp_path, "--datasets", "all", "--name", "again") == 130, "and are answered there"
    refuses_the_name_of_another(config, tmp_path, capsys)
