"""`sdsearch data prepare`: what it keeps, counts, prints and refuses; the files are the truth, the database follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.app import run_command
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.question_files import flashrag_rows, hub_folder, search_r1_rows, world_questions, write_rows

TABLES = {
    "question_sets": "SELECT * EXCLUDE (prepared_at) FROM question_sets ORDER BY ALL",
    "prepared_questions": "SELECT * FROM prepared_questions ORDER BY ALL",
}
BAD = {"id": "dev_9", "question": "Who?", "golden_answers": []}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings of a mix and two test sets: files of either form, packed or not, and a hub folder."""
    train, dev = world_questions("train", 12), world_questions("dev", 4)
    merged = [*search_r1_rows(train[:6], "nq"), *search_r1_rows(train[6:], "hotpotqa")]
    write_rows(tmp_path / "train.parquet", merged)
    write_rows(tmp_path / "dev.jsonl.gz", [*flashrag_rows(dev), BAD])
    hub = hub_folder(tmp_path / "hub", {"popqa": {"test": flashrag_rows(dev[:2])}})
    path = tmp_path / "mix.toml"
    path.write_text(
        f"""
        [model]
        path = "mini"
        [data]
        questions = "{tmp_path}/{{split}}.parquet"
        train = ["nq", "hotpotqa"]
        test = ["popqa", "musique:dev"]
        dataset = "musique"
        questions_per_iteration = 4
        max_dropped_share = 0.2
        [data.sets]
        musique = "{tmp_path}/{{split}}.jsonl.gz"
        popqa = "hub:{hub}"
        """,
        encoding="utf-8",
    )
    return path


def prepare(config: Path, workspace: Path, *overrides: str) -> int:
    options = [text for override in overrides for text in ("--set", override)]
    return run_command(["data", "prepare", str(config), "--workspace", str(workspace), *options])


def content(workspace: Path) -> dict[str, list[dict[str, object]]]:
    database = Storage(Workspace(workspace)).database
    return {name: database.query(sql).to_pylist() for name, sql in TABLES.items()}


def test_every_split_is_kept_counted_and_restored_from_its_files(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = tmp_path / "workspace"
    assert prepare(config, workspace) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    shown = {(row[0], row[1]): row[2:5] for row in rows if len(row) > 6 and row[2].isdigit()}
    assert shown == {
        ("nq", "train"): ["6", "6", "0"],
        ("hotpotqa", "train"): ["6", "6", "0"],
        ("musique", "dev"): ["5", "4", "1"],
        ("popqa", "test"): ["2", "2", "0"],
    }
    assert "dropped from musique:dev, no answers: " in printed
    assert "dev.jsonl.gz, line 5: 'golden_answers' is []" in printed
    before = content(workspace)
    assert [row["num_kept"] for row in before["question_sets"]] == [6, 4, 6, 2]
    assert len(before["prepared_questions"]) == 18
    assert len({row["question_key"] for row in before["prepared_questions"]}) == 18

    assert prepare(config, workspace) == 0, "the same again"
    assert content(workspace) == before
    (workspace / "sdsearch.duckdb").unlink()
    assert run_command(["db", "rebuild", "--workspace", str(workspace)]) == 0
    assert "prepared splits: 4" in capsys.readouterr().out
    assert content(workspace) == before
    assert run_command(["db", "check", "--workspace", str(workspace)]) == 0


def test_golden_answers_that_scores_treat_otherwise_are_named_and_counted(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"q{i}", "question": "?", "golden_answers": a} for i, a in enumerate((["A", "?"], ["x"], ["长江"]))]
    write_rows(tmp_path / "dev.jsonl.gz", rows)
    assert prepare(config, tmp_path / "workspace") == 0
    printed = capsys.readouterr().out
    assert "musique:dev: 1 question has a golden answer of articles or punctuation alone, such as 'A' of q0" in printed
    assert (
        "musique:dev: 1 question has a golden answer in a script without blanks between words, such as '长江'"
        in printed
    )
    assert "popqa:test: " not in printed


def test_damaged_files_are_named_by_check_and_left_out_by_rebuild(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = tmp_path / "workspace"
    assert prepare(config, workspace) == 0
    folder = workspace / "questions"
    (folder / "dataset=nq" / "split=train" / "set.json").write_text("{}", encoding="utf-8")
    damaged = folder / "dataset=popqa" / "split=test" / "questions.parquet"
    damaged.write_bytes((folder / "dataset=musique" / "split=dev" / "questions.parquet").read_bytes())
    capsys.readouterr()
    assert run_command(["db", "check", "--workspace", str(workspace)]) == 1
    printed = capsys.readouterr().out
    assert f"{folder / 'dataset=nq' / 'split=train' / 'set.json'} is damaged" in printed
    assert f"questions of popqa:test: {damaged}" in printed
    assert run_command(["db", "rebuild", "--workspace", str(workspace)]) == 0
    assert capsys.readouterr().out.count("left out: ") == 2
    assert [row["dataset"] for row in content(workspace)["question_sets"]] == ["hotpotqa", "musique"]


def test_every_set_that_cannot_be_used_is_named_and_nothing_is_written(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = tmp_path / "workspace"
    changes = ("data.train=['nq', 'hotpot']", "data.sets.popqa=gone.jsonl", "data.max_dropped_share=0.1")
    assert prepare(config, workspace, *changes) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "did you mean 'hotpotqa'" in lines[0]
    assert "1 of 5 rows of musique:dev cannot be used (1 with no answers)" in lines[1]
    assert "gone.jsonl: no such file" in lines[2]
    assert not (workspace / "questions").exists()
