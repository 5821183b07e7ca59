from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records.passage import Passage
from sdsearch.data.questions import read_questions
from sdsearch.data.readers import DataError, file_hash, read_passages

QUESTION = {"id": "q1", "question": "Which is the capital of Peru?", "golden_answers": ["Lima"]}
LETTERS = st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"))
LINE_TEXT = st.text(LETTERS, min_size=1).map(str.strip).filter(bool)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_passages_split_contents_into_title_and_text(tmp_path: Path) -> None:
    rows = [
        {"id": "7", "contents": '"Lima"\nLima is the capital of Peru.\nIt lies by the sea.'},
        {"id": 8, "contents": '"Hello" (song)\nA song.'},
        {"id": 9, "contents": "No quotes\nA text."},
    ]
    passages = list(read_passages(write_rows(tmp_path / "corpus.jsonl", rows)))
    assert passages == [
        Passage(id="7", title="Lima", text="Lima is the capital of Peru.\nIt lies by the sea."),
        Passage(id="8", title='"Hello" (song)', text="A song."),
        Passage(id="9", title="No quotes", text="A text."),
    ]


@given(title=LINE_TEXT, text=LINE_TEXT)
def test_contents_of_a_passage_read_back_as_the_passage(
    title: str, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    passage = Passage(id="1", title=title, text=text)
    path = write_rows(tmp_path_factory.mktemp("corpus") / "c.jsonl", [{"id": "1", "contents": passage.contents}])
    assert list(read_passages(path)) == [passage]


def test_questions_take_their_category_from_metadata(tmp_path: Path) -> None:
    rows = [
        QUESTION,
        QUESTION | {"id": "q2", "metadata": {"category": "bridge"}, "golden_answers": ["a", "b"]},
        QUESTION | {"id": "q3", "metadata": {"type": "comparison"}},
    ]
    questions = list(read_questions(write_rows(tmp_path / "dev.jsonl", rows), "nq", "dev"))
    assert [question.category for question in questions] == ["", "bridge", "comparison"]
    assert questions[1].golden_answers == ("a", "b")
    assert {question.key for question in questions} == {"nq:q1", "nq:q2", "nq:q3"}
    assert {question.split for question in questions} == {"dev"}


def test_parquet_and_jsonl_give_the_same_questions(tmp_path: Path) -> None:
    rows = [QUESTION | {"id": f"q{number}", "metadata": {"type": "t"}} for number in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "dev.parquet")
    from_jsonl = list(read_questions(write_rows(tmp_path / "dev.jsonl", rows), "d", "dev"))
    assert list(read_questions(tmp_path / "dev.parquet", "d", "dev")) == from_jsonl
    assert len(from_jsonl) == 3000


def test_reading_streams(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": "1", "contents": "a\\nb"}\nnot json\n', encoding="utf-8")
    reader = read_passages(path)
    assert next(reader).id == "1"
    with pytest.raises(DataError, match="line 2"):
        next(reader)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"id": "2"}, "'contents' is missing .columns: id."),
        ({"id": "2", "contents": "one line"}, "'contents' is 'one line'; expected the title"),
        ({"id": "2", "contents": "title\n  "}, "'contents' is"),
        ({"id": "2", "contents": 5}, "'contents' is 5; expected a text"),
        ({"id": None, "contents": "a\nb"}, "'id' is None; expected"),
        ({"id": "1", "contents": "a\nb"}, "the id '1' was seen before"),
        ([1, 2], r"expected a JSON object, got b'\[1, 2\]"),
    ],
)
def test_a_broken_passage_is_named(tmp_path: Path, row: Any, complaint: str) -> None:
    path = write_rows(tmp_path / "corpus.jsonl", [{"id": "1", "contents": "a\nb"}, row])
    with pytest.raises(DataError, match=rf"corpus\.jsonl, line 2: .*{complaint}"):
        list(read_passages(path))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"golden_answers": []}, "needs one answer or more"),
        ({"golden_answers": ["Lima", " "]}, "needs one answer or more"),
        ({"golden_answers": ["Lima", 5]}, "needs one answer or more"),
        ({"golden_answers": "Lima"}, "'golden_answers' is 'Lima'; expected a list"),
        ({"golden_answers": None}, "'golden_answers' is None; expected a list"),
        ({"question": " "}, "'question' is ' '; expected a text"),
        ({"metadata": "x"}, "'metadata' is 'x'; expected an object"),
        ({"id": "q1"}, "the id 'q1' was seen before"),
        ({"id": True}, "'id' is True"),
    ],
)
def test_a_broken_question_is_named(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    path = write_rows(tmp_path / "dev.jsonl", [QUESTION, QUESTION | {"id": "q2"} | change])
    with pytest.raises(DataError, match=rf"dev\.jsonl, line 2: .*{complaint}"):
        list(read_questions(path, "nq", "dev"))


def test_files_without_rows_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n", encoding="utf-8")
    with pytest.raises(DataError, match="the corpus is empty"):
        list(read_passages(empty))
    with pytest.raises(DataError, match="there are no questions"):
        list(read_questions(empty, "nq", "dev"))
    with pytest.raises(DataError, match="no such file; check the path"):
        list(read_passages(tmp_path / "missing.jsonl"))
    binary = tmp_path / "bytes.jsonl"
    binary.write_bytes(b'{"id": "1", "contents": "a\\nb"}\n\xff\xfe\n')
    with pytest.raises(DataError, match="line 2: expected a JSON object"):
        list(read_passages(binary))
    binary.rename(tmp_path / "bytes.parquet")
    with pytest.raises(DataError, match="not a parquet file"):
        list(read_questions(tmp_path / "bytes.parquet", "nq", "dev"))


def test_file_hash_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "corpus.jsonl").write_bytes(content)
    assert file_hash(tmp_path / "corpus.jsonl") == hashlib.sha256(content).hexdigest()
    with pytest.raises(DataError, match="no such file"):
        file_hash(tmp_path / "missing.jsonl")
