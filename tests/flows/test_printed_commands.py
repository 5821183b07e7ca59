"""Whatever the program prints to be typed is typed here: by a real shell, for names that shells and TOML take amiss."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.app import run_command
from flows.console.interrupts import fork_command, resume_command
from schemas.commands import command, parse_value, set_option, value_text
from storage.retrieval.corpora import list_corpora
from storage.workspace import Workspace
from tests.support.question_files import flashrag_rows, world_questions, write_rows

ODD_NAMES = [
    "world",
    "20181220",
    "1e5",
    "0x10",
    "true",
    "nan",
    "inf",
    "1979-05-27",
    "07:32:00",
    "my wiki",
    "-x",
    "--set",
    "it's",
    '"quoted"',
    "a=b",
    "[list]",
    "{table}",
    "a#b",
    "a,b",
    "$HOME",
    "`ls`",
    "a\\b",
    "wíki 維基",
    "~nobody",
    "tab\there",
    "zero\u200bwidth",
    "two\nlines",
]


def words_of(printed: str) -> list[str]:
    """What a shell makes of a command line, the program's name left out."""
    output = subprocess.run(
        ["bash", "-c", f"sdsearch() {{ printf '%s\\0' \"$@\"; }}; {printed}"], check=True, capture_output=True
    ).stdout
    return output.decode("utf-8", "surrogateescape").split("\0")[:-1]


def printed_commands(output: str) -> list[str]:
    return [match.rstrip(")") for match in re.findall(r"sdsearch [a-z][^;\n]*", output)]


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_a_setting_that_is_a_text_is_read_as_this_text(text: str) -> None:
    assert parse_value(value_text(text).strip(), "here") == text


@pytest.mark.parametrize("value", [3, 0.5, True, ["a", "true", "b c"], [1, 2], ["http://[::1]:8"]], ids=str)
def test_other_values_are_read_as_they_are(value: object) -> None:
    assert parse_value(value_text(value), "here") == value


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_shell_reads_every_word_as_it_was_meant(locale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    assert words_of(command("show", "half \udcff a letter\u200b\n")) == ["show", "half \udcff a letter\u200b\n"]
    overrides = [f"retrieval.corpus={name}" for name in ODD_NAMES]
    printed = command("show", *ODD_NAMES, overrides=overrides, workspace=Path("my ws"))
    expected = ["show", *ODD_NAMES, *(w for o in overrides for w in ("--set", o)), "--workspace", "my ws"]
    assert words_of(printed) == expected
    assert printed.isprintable(), "a terminal shows all of it"
    assert words_of(resume_command("a-run", Path("/it's"))) == ["resume", "a-run", "--workspace", "/it's"]
    assert words_of(resume_command("e", Path("/w"), 4)) == ["resume", "e", "--workers", "4", "--workspace", "/w"]
    assert words_of(fork_command("r", Path("/w")))[:6] == ["train", "CONFIG", "--run", "r", "--fork", "NEW"]
    assert words_of(f"sdsearch {set_option('a.b', '20181220')}") == ["--set", 'a.b="20181220"']


def corpus_at(path: Path, title: str) -> Path:
    path.write_text(json.dumps({"id": "1", "contents": f'"{title}"\ntext'}) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_hint_after_an_import_names_the_corpus_that_was_imported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    workspace = tmp_path / "my ws"
    file = corpus_at(tmp_path / f"{name}.jsonl", name)
    assert run_command(["corpus", "import", str(file), "--workspace", str(workspace)]) == 0
    hint = capsys.readouterr().out.partition("use it with: ")[2]
    ((folder, _),) = list_corpora(Workspace(workspace))
    assert run_command(["index", "build", "tiny", *words_of(f"sdsearch {hint.strip()}")]) == 0
    assert ": 1 passages" in capsys.readouterr().out
    (manifest,) = (workspace / "indexes").glob("*/manifest.json")
    assert json.loads(manifest.read_text(encoding="utf-8"))["corpus_hash"].startswith(folder.name)


def test_two_corpora_of_one_name_and_files_that_are_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wiki").mkdir()
    workspace = tmp_path / "workspace"
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        file = corpus_at(tmp_path / folder / "wiki.jsonl", folder)
        assert run_command(["corpus", "import", str(file), "--workspace", str(workspace)]) == 0
        hint = capsys.readouterr().out.partition("use it with: ")[2]
        assert run_command(["index", "build", "tiny", *words_of(f"sdsearch {hint.strip()}")]) == 0
        capsys.readouterr()
    assert len(list((workspace / "indexes").glob("*/manifest.json"))) == 2
    assert run_command(["doctor", "tiny", *words_of(f"sdsearch {hint.strip()}")]) == 0


def test_a_corpus_that_is_imported_by_name_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = corpus_at(tmp_path / "-my wiki.jsonl", "a")
    file.write_text(file.read_text(encoding="utf-8") + "no row\n", encoding="utf-8")
    assert run_command(["index", "build", "tiny", "--set", f"retrieval.corpus={file.name}", "--workspace", "ws"]) == 2
    (printed,) = printed_commands(capsys.readouterr().err)
    assert run_command(words_of(printed)) == 0


@pytest.mark.parametrize("stem", ["my settings", "-x", "it's $HOME"])
def test_the_doctor_s_remedies_are_for_the_same_settings_and_workspace(
    stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{stem}.toml").write_text('[model]\npath = "mini"\n', encoding="utf-8")
    corpus_at(tmp_path / "wiki.jsonl", "a")
    asked = [f"./{stem}.toml", "--workspace", "my ws"]
    for override in (
        "data.questions=my sets/{split}.jsonl",
        "data.questions_per_iteration=2",
        "retrieval.corpus=wiki.jsonl",
        "retrieval.index.kind=ivf_sq",
        "retrieval.index.num_lists=1",
        "retrieval.index.num_probes=1",
    ):
        asked += ["--set", override]
    assert run_command(["doctor", *asked]) == 1
    printed = set(printed_commands(capsys.readouterr().out))
    assert len(printed) == 2
    for split in ("train", "dev"):
        write_rows(tmp_path / "my sets" / f"{split}.jsonl", flashrag_rows(world_questions(split, 2)))
    assert [run_command(words_of(line)) for line in sorted(printed)] == [0, 0]
    assert (tmp_path / "my ws" / "questions").is_dir()
    assert list((tmp_path / "my ws" / "indexes").glob("*/manifest.json"))


def test_after_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small: Sequence[str] = ("rollout.max_searches=1", "rollout.max_new_tokens=4", "evaluation.num_questions=1")
    sets = [word for override in small for word in ("--set", override)]
    assert run_command(["evaluate", "--config", "tiny", *sets, "--name", "nan", "--workspace", "my ws"]) == 0
    (printed,) = printed_commands(capsys.readouterr().out)
    assert run_command(words_of(printed)) == 0
    assert "world:" in capsys.readouterr().out
    assert run_command(words_of(resume_command("nan", tmp_path / "my ws"))) == 0
    assert run_command(["runs", "--workspace", "gone"]) == 2
    (printed,) = printed_commands(capsys.readouterr().err)
    assert words_of(printed) == ["train", "quickstart", "--workspace", str(tmp_path / "gone")]
