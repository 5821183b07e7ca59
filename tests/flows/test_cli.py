"""The commands that read, and what they load and print."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import click
import pytest
import typer
from rich.console import Console

from flows.app import app, run_command
from flows.inspect.schema import RECORDS
from flows.inspect.sql import print_rows
from flows.settings.load import load_settings
from schemas.records.ledger import RunRecord
from storage.database.canned import list_canned
from storage.database.connection import Database
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.records import all_rows, fill, make_groups, make_run

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "prefect", "faiss", "sklearn")
EVIL = "\x1b[31mred\x1b[0m [bold]not bold[/bold] \u202etxet\x07"


def stored_run(run: str) -> RunRecord:
    settings = load_settings("tiny", ["seed=3"])
    changes = {"settings_json": settings.model_dump_json(), "settings_hash": settings.content_hash(), "seed": 3}
    record = make_run(run).model_copy(update=changes)
    return record.model_copy(update={"updated_at": record.created_at + timedelta(seconds=90)})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one run and a row in every table."""
    opened = Workspace.open(tmp_path_factory.mktemp("workspace"))
    storage = Storage(opened)
    storage.create_run(stored_run("first"))
    assert storage.sync.flush()
    fill(storage.database, all_rows(make_groups()))
    return opened.root


def output(capsys: pytest.CaptureFixture[str], workspace: Path, *arguments: str) -> str:
    code = run_command([*arguments, "--workspace", str(workspace)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def test_runs(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, workspace, "runs")
    (row,) = (line.split() for line in text.splitlines() if "first" in line)
    assert row[:8] == ["first", "training", "-", "dead;", "resume", "0/10", "0", "3"], "nobody holds its lock"


def test_show_has_settings_stages_and_the_curve(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, workspace, "show", "first")
    rows = [line.split() for line in text.splitlines()]
    assert ["update.learning_rate", "0.0003"] in rows
    assert ["seed", "3"] in rows
    assert not any(row[:1] == ["hindsight.rho"] for row in rows), "a default is not listed"
    assert any(row[:2] == ["sample", "1"] for row in rows)
    assert "greedy_em" in text
    assert "1 min 30 s" in text


@pytest.mark.parametrize(
    "query", [query.name for query in list_canned() if query.parameters == ("run",) and not query.of_replays]
)
def test_shipped_queries_run_and_give_rows(workspace: Path, capsys: pytest.CaptureFixture[str], query: str) -> None:
    rows = output(capsys, workspace, "sql", "--name", query, "--format", "json").splitlines()
    assert rows
    assert all(json.loads(row)["run"] == "first" for row in rows)


def test_a_rollout_as_text(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rollout = make_groups()[0].rollouts[0].id
    arguments = ("sql", "--name", "rollout_text", "--param", f"rollout={rollout}", "--format", "json")
    rows = [json.loads(line) for line in output(capsys, workspace, *arguments).splitlines()]
    assert rows[0]["author"] == "question"
    assert {"policy", "environment"} <= {row["author"] for row in rows}


def test_sql_lists_the_shipped_queries(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, workspace, "sql", "--list")
    assert all(query.name in text and query.description in text for query in list_canned())


def test_sql_formats_say_the_same(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = "select 1 as one, 'a,b' as text, [1, 2] as list, null as nothing"
    as_csv = output(capsys, workspace, "sql", query, "--format", "csv")
    assert list(csv.reader(io.StringIO(as_csv))) == [["one", "text", "list", "nothing"], ["1", "a,b", "[1,2]", ""]]
    as_json = output(capsys, workspace, "sql", query, "--format", "json")
    assert json.loads(as_json) == {"one": 1, "text": "a,b", "list": [1, 2], "nothing": None}
    as_table = output(capsys, workspace, "sql", query)
    assert as_table.splitlines()[-2].split() == ["1", "a,b", "[1,", "2]", "-"]


def test_sql_parameters_keep_their_types(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = "select typeof($a) as a, typeof($b) as b, $b as value"
    arguments = ("sql", query, "--param", "a=3", "--param", "b=x y", "--format", "json")
    row = json.loads(output(capsys, workspace, *arguments))
    assert row["a"] in ("INTEGER", "BIGINT")
    assert (row["b"], row["value"]) == ("VARCHAR", "x y")


def test_long_tables_say_what_they_leave_out(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, workspace, "sql", "select * from range(201)")
    assert "1 more rows" in text
    assert len(output(capsys, workspace, "sql", "select * from range(201)", "--format", "json").splitlines()) == 201


def test_data_cannot_steer_the_terminal(workspace: Path) -> None:
    rows = Database(Workspace(workspace)).read_only_user_query("select $evil as text", {"evil": EVIL})
    shown = Console(file=io.StringIO(), force_terminal=True, width=120)
    print_rows(rows, "table", shown)
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "\\x1b[31mred\\x1b[0m [bold]not bold[/bold] \\u202etxet\\x07" in text
    assert "\x1b[31m" not in text
    assert "\u202e" not in text


def test_files_get_the_data_as_it_is(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quoted = EVIL.replace("'", "''")
    as_json = output(capsys, workspace, "sql", f"select '{quoted}' as text", "--format", "json")
    assert json.loads(as_json) == {"text": EVIL}


def test_schemas_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {record.__name__ for record in RECORDS}
    assert printed["Settings"]["additionalProperties"] is False
    assert run_command(["schema", "--out", str(tmp_path / "schemas")]) == 0
    written = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "schemas").iterdir()}
    assert written == {f"{name}.schema.json": content for name, content in printed.items()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["runs"],
        ["show", "first"],
        ["sql", "select 1"],
        ["schema"],
        ["train", "no_such_settings"],
    ],
    ids=" ".join,
)
def test_light_commands_load_no_heavy_library(workspace: Path, arguments: list[str]) -> None:
    program = (
        "import sys; from flows.app import run_command; run_command(sys.argv[1:]); "
        f"print('loaded:', *({set(HEAVY)!r} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "SDSEARCH_HOME": str(workspace)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "loaded:"


def test_no_help_has_brackets_which_would_be_taken_for_markup() -> None:
    """`[default: 4200]` and `[variants.NAME]` were not shown."""

    def texts(command: click.Command) -> Iterator[str]:
        yield command.help or ""
        yield from (getattr(parameter, "help", None) or "" for parameter in command.params)
        for inner in getattr(command, "commands", {}).values():
            yield from texts(inner)

    found = list(texts(typer.main.get_command(app)))
    assert len(found) > 100
    assert [text for text in found if "[" in text] == []
