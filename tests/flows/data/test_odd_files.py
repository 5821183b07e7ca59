"""Files as editors and downloads leave them: read rightly, or one line that names the file."""

from __future__ import annotations

import codecs
import gzip
import json
import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from flows.app import run_command
from flows.console.errors import UserError
from flows.retrieval.corpora import find_corpus, import_corpus
from flows.run.model_files import model_folder, model_hashes
from flows.settings.load import load_settings
from flows.study.plan import load_study
from schemas.settings.data import SetName
from sdsearch.data.corpus import CorpusReader
from sdsearch.data.questions import read_questions, rows_at
from sdsearch.data.readers import BadRowError, DataError, read_passages, read_rows
from storage.disk.files import sha256_file
from storage.workspace import Workspace

BOM = codecs.BOM_UTF8
ROW = {"id": "1", "contents": '"Título"\nUno'}
QUESTION = {"id": "q1", "question": "Wer?", "golden_answers": ["Ä"]}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of this test's own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def line(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


@pytest.mark.parametrize("mark", [b"", BOM], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n \r\n"], ids=["LF", "CRLF", "blank lines"])
def test_marks_and_line_ends_are_no_part_of_what_is_read(mark: bytes, end: bytes, tmp_path: Path) -> None:
    settings = tmp_path / "own.toml"
    settings.write_bytes(mark + end.join([b"seed = 7", b"[model]", b'path = "mini"', b""]))
    assert load_settings(str(settings)).seed == 7
    corpus, questions = tmp_path / "c.jsonl", tmp_path / "q.jsonl"
    corpus.write_bytes(mark + end.join([line(ROW), line(ROW | {"id": "2"}), b""]))
    passages = [passage for batch in CorpusReader(corpus).batches() for passage in batch.passages]
    assert [(one.id, one.title, one.text) for one in passages] == [("1", "Título", "Uno"), ("2", "Título", "Uno")]
    assert list(read_passages(corpus)) == passages
    questions.write_bytes(mark + line(QUESTION) + end)
    (question,) = read_questions(questions, "set", "train")
    assert (question.question, question.golden_answers) == ("Wer?", ("Ä",))


def test_a_study_with_a_mark(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    shipped = (files("flows") / "configs" / "study_quick.toml").read_bytes()
    study.write_bytes(BOM + shipped.replace(b"\n", b"\r\n"))
    assert load_study(str(study), Workspace(tmp_path)).name == "study_quick"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be"])
def test_other_encodings_are_named(encoding: str, tmp_path: Path) -> None:
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    settings, corpus = tmp_path / "own.toml", tmp_path / "c.jsonl"
    settings.write_bytes(mark + "seed = 7\n".encode(encoding))
    with pytest.raises(UserError, match=r"own\.toml: UTF-16 text; save the file as UTF-8$"):
        load_settings(str(settings))
    corpus.write_bytes(mark + "".join(json.dumps(ROW) + "\n" for _ in range(3)).encode(encoding))
    for read in (lambda: list(CorpusReader(corpus).batches()), lambda: list(read_passages(corpus))):
        with pytest.raises(DataError, match=r"c\.jsonl: UTF-16 text; save the file as UTF-8$"):
            read()


def test_rows_within_rows_beyond_what_can_be_read_are_bad_rows(tmp_path: Path) -> None:
    deep = b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b', "contents": "\\ud83d"}'
    path = tmp_path / "c.jsonl"
    path.write_bytes(deep + b"\n" + line(ROW) + b"\n")
    (batch,) = CorpusReader(path).batches()
    assert [passage.id for passage in batch.passages] == ["1"]
    assert [row.reason for row in batch.bad_rows] == ["no JSON object"]
    (_, bad), (_, good) = read_rows(path)
    assert isinstance(bad, BadRowError)
    assert "line 1: expected a JSON object" in str(bad)
    assert "RecursionError" in str(bad)
    assert good == ROW
    settings = tmp_path / "own.toml"
    settings.write_bytes(b"seed = " + b"[" * 100_000)
    with pytest.raises(UserError, match=r"own\.toml: "):
        load_settings(str(settings))


def test_what_is_there_and_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.open(tmp_path / "workspace")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"folder\.jsonl: a folder; name a file"):
        import_corpus(tmp_path / "folder.jsonl", workspace, 0)
    with pytest.raises(DataError, match=r"folder\.jsonl: a folder; name a file"):
        read_questions(tmp_path / "folder.jsonl", "set", "train")
    path = tmp_path / "c.jsonl"
    path.write_bytes(line(ROW))
    (tmp_path / "q.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"q\.parquet: not a parquet file that can be read after row 0"):
        read_questions(tmp_path / "q.parquet", "set", "train")
    open_any = Path.open

    def refusing(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return open_any(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(DataError, match=r"c\.jsonl: cannot be read \(Permission denied\); make it readable"):
        read_questions(path, "set", "train")
    with pytest.raises(DataError, match=r"c\.jsonl: cannot be read \(Permission denied\); make it readable"):
        find_corpus(str(path), workspace)


def test_a_folder_that_nobody_may_look_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    workspace = Workspace.open(tmp_path / "workspace")
    monkeypatch.setattr(Path, "is_file", refusing)
    with pytest.raises(UserError, match=r"^retrieval\.corpus '/x/c\.jsonl': .*Permission denied.*; make the folder"):
        find_corpus("/x/c.jsonl", workspace)
    with pytest.raises(DataError, match=r"^/x/q\.jsonl: cannot be read \(Permission denied\); make it readable$"):
        read_questions(Path("/x/q.jsonl"), "set", "train")


def cut(content: bytes) -> bytes:
    return content[:-10]


def flipped(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 0xFF]) + content[len(content) // 2 + 1 :]


@pytest.mark.parametrize("harm", [cut, flipped, lambda content: b"no gzip"], ids=["cut", "flipped", "other"])
@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_packed_files_that_are_damaged(ending: str, harm: Callable[[bytes], bytes], tmp_path: Path) -> None:
    import pyarrow as pa

    text = b"".join(line(ROW | {"id": str(number)}) + b"\n" for number in range(200))
    packed = gzip.compress(text) if ending == "gz" else pa.Codec("zstd").compress(text, asbytes=True)
    path = tmp_path / f"c.jsonl.{ending}"
    path.write_bytes(harm(packed))
    with pytest.raises(DataError, match=rf"c\.jsonl\.{ending}: cannot be unpacked after line \d+ \(.*get it again"):
        list(CorpusReader(path).batches())


def test_a_tilde_is_the_home_folder_wherever_a_path_is_written(home: Path, tmp_path: Path) -> None:
    (home / "c.jsonl").write_bytes(line(ROW))
    (home / "set").mkdir()
    (home / "set" / "train.jsonl").write_bytes(line(QUESTION))
    (home / "own.toml").write_bytes(b'seed = 7\n[model]\npath = "mini"\n')
    workspace = Workspace.open("~/workspace")
    assert workspace.root == home / "workspace"
    assert load_settings("~/own.toml").seed == 7
    assert find_corpus("~/c.jsonl", workspace).manifest.num_passages == 1
    assert [row for _, row in rows_at("~/{dataset}/{split}.jsonl", SetName("set", "train"))] == [QUESTION]
    assert run_command(["corpus", "import", "~/c.jsonl", "--workspace", "~/other"]) == 0
    assert run_command(["schema", "--out", "~/schemas"]) == 0
    assert sorted(path.name for path in home.iterdir()) == sorted(
        ["c.jsonl", "other", "own.toml", "schemas", "set", "workspace"]
    )
    # As in a shell: '~name' of nobody stays as it is, and so does a variable, which the shell would have replaced.
    for name in ("~nobody-of-this-name/c.jsonl", "$HOME/c.jsonl"):
        with pytest.raises(UserError, match="no such file, folder or imported corpus"):
            find_corpus(name, workspace)
    assert not os.path.exists("~")


@pytest.mark.parametrize("path", ["~/model/", "home/model"])
def test_a_model_s_path_is_read_alike_by_doctor_and_by_what_training_asks(
    path: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "model").symlink_to(model_folder("mini"), target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    hashes = [model_hashes(written, sha256_file) for written in (path, "mini")]
    assert hashes[0] == hashes[1]
    options = ["--set", f"model.path={path}", "--set", "model.torch_threads=1", "--workspace", str(tmp_path / "w")]
    assert run_command(["doctor", "tiny", *options]) == 0, capsys.readouterr().out
