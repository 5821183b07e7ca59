"""Question files that are not what they seem: one clear line with the place, never a traceback."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records.question import Question
from schemas.settings.data import SetName
from sdsearch.data.question_rows import question_of
from sdsearch.data.questions import ReadingRules, collect, rows_at
from sdsearch.data.readers import BadRowError, DataError, json_object, short

GOOD = {"id": "1", "question": "why?", "golden_answers": ["x"]}
LINE = json.dumps(GOOD).encode() + b"\n"
OWN = SetName("own", "train")


def nested(levels: int) -> bytes:
    return b'{"id": "2", "question": ' + b"[" * levels + b"]" * levels + b"}\n"


def table(**columns: Any) -> Callable[[Path], None]:
    content = {"id": ["1"], "question": ["why?"], "golden_answers": [["x"]], **columns}
    return lambda path: pq.write_table(pa.table(content), path)


def bytes_of(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content)


INVALID = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
FILES: list[tuple[str, Callable[[Path], None], str]] = [
    ("deep.jsonl", bytes_of(LINE + nested(100_000)), r"line 2: expected a JSON object"),
    (
        "deep.jsonl",
        bytes_of(LINE + nested(900)),
        r"line 2: 'question' is|line 2: expected a JSON object|the columns are",
    ),
    ("latin.jsonl", bytes_of(LINE + '{"id": "é"}\n'.encode("latin-1")), r"line 2: expected a JSON object"),
    ("number.jsonl", bytes_of(b'{"id": ' + b"9" * 10_000 + b"}\n"), r"line 1: expected a JSON object"),
    ("nan.jsonl", bytes_of(b'{"id": NaN, "question": NaN, "golden_answers": [NaN]}\n'), r"line 1: 'question' is nan"),
    ("cut.jsonl.gz", bytes_of(gzip.compress(LINE * 1000)[:50]), r"cannot be unpacked after line \d+"),
    ("plain.jsonl.gz", bytes_of(LINE), r"cannot be unpacked after line 0 \(Not a gzipped file"),
    ("text.parquet", bytes_of(LINE), r"not a parquet file that can be read after row 0"),
    ("folder.jsonl", lambda path: path.mkdir(), r"a folder; name a file"),
    ("folder.parquet", lambda path: path.mkdir(), r"a folder; name a file"),
    ("gone.parquet", lambda path: None, r"no such file"),
    ("numbers.parquet", table(id=[1.5]), r"row 1: 'id' is 1\.5"),
    ("nulls.parquet", table(question=[None]), r"row 1: 'question' is None"),
    ("nan.parquet", table(question=[float("nan")]), r"row 1: 'question' is nan"),
    ("nans.parquet", table(golden_answers=[[float("nan")]]), r"row 1: 'golden_answers' is \[nan\]"),
    ("bytes.parquet", table(question=[b"\xff"]), r"row 1: 'question' is b'\\xff'"),
    ("invalid.parquet", table(question=INVALID), r"not a parquet file that can be read after row 0 .*utf-8"),
]


@pytest.mark.parametrize(("name", "make", "complaint"), FILES, ids=[name for name, _, _ in FILES])
def test_what_cannot_be_read_is_one_line(
    name: str, make: Callable[[Path], None], complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(DataError, match=complaint) as caught:
        collect(rows_at(str(path), OWN), str(path), OWN, ReadingRules(True))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(str(path))
    assert len(line) < 700


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
COLUMNS = ("id", "question", "golden_answers", "metadata", "data_source", "prompt", "reward_model", "extra_info")


def read(row: dict[str, Any]) -> Question | BadRowError:
    try:
        return question_of(row, "file, row 1", OWN, question_mark=True)
    except BadRowError as error:
        return error


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(COLUMNS, VALUES)))
def test_a_row_of_any_types_is_a_question_or_a_bad_row(row: dict[str, Any]) -> None:
    for base in ({}, GOOD, {"prompt": [{"role": "user", "content": "Question: why?"}], "reward_model": {}}):
        found = read({**base, **row})
        assert str(found).startswith("file, row 1: ") if isinstance(found, BadRowError) else all(found.golden_answers)


def test_values_that_are_nearly_too_deep_are_shown() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    assert short(value) == "a list of too many levels"


def test_a_line_of_json_is_an_object_or_what_is_wrong_with_it() -> None:
    for levels in (1, 100, 300, 990, 5_000):
        row = json_object(nested(levels), "here")
        assert isinstance(row, BadRowError | dict)
