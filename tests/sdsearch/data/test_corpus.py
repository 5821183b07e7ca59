"""Reading and importing a corpus: what is kept, what is left out and why, and what an interrupted import leaves."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sdsearch.data.corpus
from flows.app import run_command
from flows.console.errors import UserError
from flows.retrieval.corpora import find_corpus, import_corpus
from sdsearch.data.corpus import CorpusReader
from sdsearch.data.readers import DataError, file_hash
from storage.disk.files import make_folder, temporary_name
from storage.retrieval.corpora import CorpusUnusableError
from storage.workspace import Workspace

GOOD = [{"id": str(number), "contents": f'"Title {number}"\nText {number}.'} for number in range(50)]
BROKEN: list[Any] = [
    {"id": "7", "contents": '"Again"\nSeen before.'},
    {"id": "x", "contents": "no line break"},
    {"id": None, "contents": '"a"\nb'},
    [1, 2],
]


def as_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdsearch.data.corpus, "BATCH_ROWS", 8)


def write(path: Path, content: bytes) -> Path:
    packed = {".gz": gzip.compress, ".zst": lambda raw: pa.compress(raw, "zstd").to_pybytes()}
    path.write_bytes(packed.get(path.suffix, bytes)(content))
    return path


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.jsonl.zst"])
def test_broken_rows_are_left_out_and_counted_by_reason(name: str, tmp_path: Path, workspace: Workspace) -> None:
    path = write(tmp_path / name, as_lines(GOOD[:20] + BROKEN) + b"\n\xff\n" + as_lines(GOOD[20:]))
    imported = import_corpus(path, workspace, max_bad_rows=5)
    assert imported.manifest.bad_rows == {
        "id twice": 1,
        "no JSON object": 2,
        "no id": 1,
        "no title and text": 1,
    }
    assert imported.manifest.source_sha256 == file_hash(path)
    stored = find_corpus(str(path), workspace)
    assert stored.folder == imported.folder, "a file that was imported is found by its bytes, broken rows or not"
    assert [passage.model_dump() for passage in stored.passages] == [
        {"id": row["id"], "title": f"Title {row['id']}", "text": f"Text {row['id']}."} for row in GOOD
    ]
    for known_as in ("c", name, imported.manifest.source_sha256[:8], str(imported.folder)):
        assert find_corpus(known_as, workspace).folder == imported.folder


@pytest.mark.usefixtures("small_batches")
def test_more_broken_rows_than_may_be_end_the_import(tmp_path: Path, workspace: Workspace) -> None:
    path = write(tmp_path / "c.jsonl", as_lines(GOOD + BROKEN))
    with pytest.raises(DataError, match=r"4 of the first 54 rows are broken, at most 3 may be .*c\.jsonl, line 5"):
        import_corpus(path, workspace, max_bad_rows=3)
    with pytest.raises(DataError, match=r"c\.jsonl, line 5\d: .*leave such rows out: sdsearch corpus import"):
        find_corpus(str(path), workspace)
    assert list(workspace.corpora.iterdir()) == []


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.jsonl.zst"])
@pytest.mark.parametrize("damage", ["truncated", "not compressed"])
def test_a_damaged_archive_is_named_and_leaves_nothing(
    name: str, damage: str, tmp_path: Path, workspace: Workspace
) -> None:
    path = write(tmp_path / name, as_lines(GOOD))
    path.write_bytes(path.read_bytes()[:-30] if damage == "truncated" else as_lines(GOOD))
    with pytest.raises(DataError, match=rf"{name}: cannot be unpacked after line \d+ .*get it again"):
        import_corpus(path, workspace, max_bad_rows=10)
    assert list(workspace.corpora.iterdir()) == []


def test_what_an_interrupted_import_left_goes_with_the_next(tmp_path: Path, workspace: Workspace) -> None:
    left = workspace.corpora / temporary_name("import")
    make_folder(left)
    (left / "passages.arrow").write_bytes(b"half")
    import_corpus(write(tmp_path / "c.jsonl", as_lines(GOOD)), workspace, 0)
    assert not left.exists()


def test_a_file_is_hashed_once_and_again_when_it_changed(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "c.jsonl", as_lines(GOOD))
    first = find_corpus(str(path), workspace)
    with monkeypatch.context() as patch:
        patch.setattr("flows.retrieval.corpora.file_hash", None)
        patch.setattr("flows.retrieval.corpora.CorpusReader", None)
        assert find_corpus(str(path), workspace).folder == first.folder
    write(path, as_lines(GOOD[:-1]))
    assert len(find_corpus(str(path), workspace).passages) == 49
    copy = write(tmp_path / "copy.jsonl", as_lines(GOOD))
    assert find_corpus(str(copy), workspace).folder == first.folder, "a copy is the same corpus"


def test_a_damaged_corpus_is_imported_again_from_its_file(tmp_path: Path, workspace: Workspace) -> None:
    path = write(tmp_path / "c.jsonl", as_lines(GOOD))
    stored = find_corpus(str(path), workspace)
    passages = stored.folder / "passages.arrow"
    passages.write_bytes(passages.read_bytes()[:-1])
    with pytest.raises(CorpusUnusableError, match=r"passages\.arrow: has .*import the corpus again"):
        find_corpus(stored.manifest.source_sha256[:16], workspace)
    assert len(find_corpus(str(path), workspace).passages) == 50


def test_an_unknown_corpus_names_those_that_are_there(tmp_path: Path, workspace: Workspace) -> None:
    import_corpus(write(tmp_path / "c.jsonl", as_lines(GOOD)), workspace, 0)
    with pytest.raises(UserError, match=r"retrieval\.corpus 'wiki': no such file.* c\.jsonl \([0-9a-f]{16}\)"):
        find_corpus("wiki", workspace)


@pytest.mark.usefixtures("small_batches")
def test_ids_are_compared_over_all_batches(tmp_path: Path) -> None:
    rows = [{"id": str(number % 90), "contents": '"a"\nb'} for number in range(200)]
    batches = list(CorpusReader(write(tmp_path / "c.jsonl", as_lines(rows))).batches())
    assert [passage.id for batch in batches for passage in batch.passages] == [str(number) for number in range(90)]
    assert sum(len(batch.bad_rows) for batch in batches) == 110


def test_the_command_prints_rows_reasons_and_the_name_to_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "c.jsonl", as_lines(GOOD + BROKEN))
    home = ["--workspace", str(tmp_path / "home")]
    assert run_command(["corpus", "import", str(path), *home]) == 0
    output = capsys.readouterr().out
    assert f"left out: {path}, line 52: 'contents' is 'no line break'" in output
    assert "50 passages, 4 rows left out" in output
    assert "--set retrieval.corpus=c " in output
    assert run_command(["corpus", "list", *home]) == 0
    assert "c.jsonl" in capsys.readouterr().out
    assert run_command(["corpus", "import", str(tmp_path / "none.jsonl"), *home]) == 2
    assert "no such file" in capsys.readouterr().err
