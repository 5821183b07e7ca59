"""On a terminal no stored text acts: not in tables, not as csv or JSON, not in errors."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from flows.app import run_command
from flows.settings.load import load_settings
from schemas.records.ledger import StageKey
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.records import all_rows, fill, make_groups, make_run

# Colour, bell, title, cursor, a C1 control, a right-to-left override, markup of the table library.
EVIL = "\x1b[31mred\x1b]0;owned\x07\x1b[2J\x9b2J\u202etxet\u2028[bold red]x[/]\r"
ACTS = ("\x1b[31mred", "\x1b]0;", "\x07", "\x1b[2J", "\x9b", "\u202e", "\u2028")
KEYS = ("run", "group_id", "rollout_id", "question_key", "mode", "dataset", "split", "stage", "status")

Show = Callable[..., tuple[int, str]]


def poisoned(rows: pa.Table) -> pa.Table:
    """Return rows whose texts are all hostile, but for the keys that join them."""
    for place, field in enumerate(rows.schema):
        if pa.types.is_string(field.type) and field.name not in KEYS:
            rows = rows.set_column(place, field, pa.array([EVIL] * rows.num_rows))
        elif pa.types.is_list(field.type) and pa.types.is_string(field.type.value_type):
            rows = rows.set_column(place, field, pa.array([[EVIL, EVIL]] * rows.num_rows, type=field.type))
    return rows


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose every stored text is hostile."""
    opened = Workspace.open(tmp_path_factory.mktemp("workspace"))
    storage = Storage(opened)
    settings = load_settings("tiny", [f"model.path={json.dumps(EVIL)}"])
    storage.create_run(make_run("first").model_copy(update={"settings_json": settings.model_dump_json()}))
    record = storage.ledger.begin(StageKey(run="first", iteration=2, stage="sample"), "hash", 0)
    storage.sync.put_stage(storage.ledger.fail(record, EVIL).key)
    assert storage.sync.flush()
    fill(storage.database, {name: poisoned(rows) for name, rows in all_rows(make_groups()).items()})
    return opened.root


@pytest.fixture
def show(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Show:
    """Run a command on a terminal; return its exit code and what the terminal got."""

    def run(*arguments: str) -> tuple[int, str]:
        master, slave = pty.openpty()
        read: list[bytes] = []
        reader = threading.Thread(target=_drain, args=(master, read))
        reader.start()
        with open(slave, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            patch.setattr(sys, "stderr", terminal)
            patch.setenv("TERM", "xterm-256color")
            patch.setenv("COLUMNS", "1000")  # wide, so that no cell is folded
            assert sys.stdout.isatty()
            code = run_command([*arguments, "--workspace", str(workspace)])
        reader.join()
        os.close(master)
        return code, b"".join(read).decode("utf-8")

    return run


def _drain(master: int, read: list[bytes]) -> None:
    while True:
        try:
            content = os.read(master, 65536)
        except OSError:  # Linux says so when the other side is closed.
            return
        if not content:
            return
        read.append(content)


def assert_tame(text: str) -> None:
    assert not [act for act in ACTS if act in text]


def test_runs_and_a_run(show: Show) -> None:
    group = make_groups()[0].id
    for arguments in (["runs"], ["show", "first"], ["show", "first", "3"], ["show", "first", "3", group]):
        code, text = show(*arguments)
        assert code == 0, text
        assert "red" in text, "the text itself is shown"
        assert_tame(text)


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_tables(form: str, show: Show) -> None:
    for table in ("questions", "turns", "searches", "stages"):
        code, text = show("sql", f'select * from "{table}"', "--format", form)
        assert code == 0, text
        assert "red" in text
        assert_tame(text)
    code, text = show("sql", f"select 1 as \"{EVIL}\", '{EVIL}' as b", "--format", form)
    assert code == 0, text
    assert_tame(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["resume", EVIL, "--no-prefect"],
        ["show", EVIL],
        ["train", EVIL],
        ["train", "tiny", "--set", f"{EVIL}=1"],
        ["train", "tiny", "--set", f"model.path={EVIL}", "--no-prefect", "--run", "x"],
        ["sql", f"select {EVIL}"],
        ["sql", "select 1", "--param", EVIL],
        ["study", EVIL, "--report-only"],
        ["replay", EVIL, "--iterations", "1"],
        ["replay", "first", "--iterations", EVIL],
    ],
)
def test_errors(arguments: list[str], show: Show) -> None:
    code, text = show(*arguments)
    assert code == 2, text
    assert "error: " in text
    assert_tame(text)


def test_an_encoding_without_a_name_s_letters_stops_nothing(tmp_path: Path) -> None:
    config = tmp_path / "réglages.toml"
    config.write_text('[model]\npath = "modèle"\n', encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "flows.app", "doctor", str(config), "--workspace", str(tmp_path / "workspace")],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert "mod\\xe8le" in ended.stdout
    assert ended.stderr == ""
