"""`sdsearch data answerability`: what it counts, keeps and reads again, and EM on what can be answered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.app import run_command
from flows.evaluation.answerability import answerable_answers
from flows.evaluation.show import SetResult
from schemas.records.answerability import Answerability
from schemas.records.evaluation import EvaluationAnswer
from schemas.records.passage import SearchHit
from sdsearch.retrieval.ports import RetrieverPlugin
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.records import make_conditions, make_evaluation

PASSAGES = {"1": '"Peru"\nLima is the capital of Peru.', "2": '"Norway"\nOslo is a city.', "3": '"Rome"\nA city.'}
QUESTIONS = {"capital of Peru": "Lima", "the capital of Peru is a city": "Oslo", "capital of France": "Paris"}


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """A corpus of three passages and three questions: one is found, one is elsewhere, one is nowhere."""
    corpus, questions = tmp_path / "corpus.jsonl", tmp_path / "toy_dev.jsonl"
    corpus.write_text("".join(json.dumps({"id": k, "contents": v}) + "\n" for k, v in PASSAGES.items()))
    rows = [
        {"id": f"{n}", "question": text, "golden_answers": [answer]}
        for n, (text, answer) in enumerate(QUESTIONS.items())
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {
        "data.questions": f'"{tmp_path}/{{dataset}}_{{split}}.jsonl"',
        "data.dataset": "toy",
        "data.test": '["toy:dev"]',
        "retrieval": f'{{ kind = "bm25", corpus = "{corpus}", num_passages = 1 }}',
    }
    sets = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    return ["tiny", *sets, "--workspace", str(tmp_path / "workspace")]


def count(options: list[str], *more: str) -> None:
    assert run_command(["data", "answerability", *options, *more]) == 0


def counted(options: list[str]) -> list[Answerability]:
    return list(Storage(Workspace(Path(options[-1]))).answerability.of_set("toy", "dev"))


def answers_of(numbers: range, **changes: Any) -> list[EvaluationAnswer]:
    (answer,) = make_evaluation()[1]
    golden = list(QUESTIONS.values())
    return [
        answer.model_copy(
            update={"question_key": f"toy:{n}", "golden_answers": (golden[n],), "em": float(n == 0), **changes}
        )
        for n in numbers
    ]


def test_shares_are_printed_and_kept(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    count(options)
    printed = capsys.readouterr().out
    assert "in the top 1" in printed
    assert [line.split() for line in printed.splitlines() if "toy" in line] == [["toy", "dev", "3", "0.667", "0.333"]]
    (found,) = counted(options)
    assert (found.num_questions, found.num_in_corpus, found.num_in_top_k) == (3, 2, 1)
    rows = Storage(Workspace(Path(options[-1]))).answerability.read(found)
    assert [(row.question_key, row.in_corpus, row.in_top_k) for row in rows] == [
        ("toy:0", True, True), ("toy:1", True, False), ("toy:2", False, False),
    ]  # fmt: skip


def test_the_corpus_is_read_once_and_k_and_index_decide(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    count(options)
    monkeypatch.setattr("flows.evaluation.answerability.in_any_passage", None)  # Calling it would raise.
    count(options, "--set", "retrieval.num_passages=3")
    count(options, "--set", "retrieval.k1=1.2")
    found = {(each.num_passages, each.index_hash): (each.num_in_corpus, each.num_in_top_k) for each in counted(options)}
    assert len(found) == 3
    assert {num: counts for (num, _), counts in found.items()}[3] == (2, 2)
    count(options)
    assert len(counted(options)) == 3, "the same count replaces the former one"


def test_other_questions_are_looked_for_anew(options: list[str], tmp_path: Path) -> None:
    count(options)
    path = tmp_path / "toy_dev.jsonl"
    path.write_text(path.read_text().replace("Oslo", "Bergen"))
    count(options)
    assert sorted(each.num_in_corpus or 0 for each in counted(options)) == [1, 2]


def test_a_server_has_no_corpus_to_read(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    plugin = '{ kind = "tests.flows.evaluation.test_answerability:Nothing", num_passages = 1 }'
    count(options, "--set", f"retrieval={plugin}")
    assert ["toy", "dev", "3", "-", "0.000"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    (found,) = counted(options)
    assert (found.num_in_corpus, found.num_in_top_k, found.corpus_sha256) == (None, 0, "")


class Nothing(RetrieverPlugin):
    """A retriever of one's own that finds nothing."""

    def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
        return [() for _ in queries]


def test_em_of_what_can_be_answered(options: list[str]) -> None:
    count(options)
    storage, (found,) = Storage(Workspace(Path(options[-1]))), counted(options)
    made_under = make_conditions().model_copy(update={"index_hash": found.index_hash})
    all_three = answers_of(range(3))
    flags = answerable_answers(storage, made_under, all_three)
    assert flags == [True, True, False]
    (report, _) = make_evaluation()
    assert SetResult(report, all_three, made_under, flags).em_answerable == 0.5
    assert answerable_answers(storage, made_under, answers_of(range(1, 3))) == [True, False], "a sample of the set"
    assert SetResult(report, answers_of(range(2, 3)), made_under, [False]).em_answerable is None
    assert SetResult(report, all_three, made_under).em_answerable is None


def test_what_was_counted_of_something_else_is_not_taken(options: list[str]) -> None:
    count(options)
    storage, (found,) = Storage(Workspace(Path(options[-1]))), counted(options)
    made_under = make_conditions().model_copy(update={"index_hash": found.index_hash})
    assert answerable_answers(storage, make_conditions(), answers_of(range(3))) is None, "another index"
    assert answerable_answers(storage, None, answers_of(range(3))) is None, "unknown conditions"
    assert answerable_answers(storage, made_under, answers_of(range(3), golden_answers=("x",))) is None, "new answers"
    path = storage.workspace.resolve(found.file.path)
    path.write_bytes(path.read_bytes()[:-1])
    assert answerable_answers(storage, made_under, answers_of(range(3))) is None, "a damaged file"
    count(options)
    assert answerable_answers(storage, made_under, answers_of(range(3))) == [True, True, False], "counted again"


@pytest.mark.slow
def test_the_table_of_an_evaluation_has_the_column_once_it_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", "tiny", "--datasets", "world:dev", "--num-questions", "4", "--name", "e"]
    evaluation = ["evaluate", *words, "--workspace", str(tmp_path)]
    assert run_command(evaluation) == 0
    assert "EM answerable" not in capsys.readouterr().out
    assert run_command(["data", "answerability", "tiny", "--datasets", "world:dev", "--workspace", str(tmp_path)]) == 0
    capsys.readouterr()
    assert run_command(evaluation) == 0
    assert "EM answerable" in capsys.readouterr().out
