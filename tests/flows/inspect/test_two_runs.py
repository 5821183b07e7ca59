"""Two runs of one workspace have the same ids: no view, shipped query or printed command mixes their rows."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console

from flows.app import run_command
from flows.run.progress import RichReporter
from flows.settings.load import load_settings
from schemas.records.run_kind import ReplayKind, TrainingKind
from storage.database.canned import CannedQuery, list_canned
from storage.database.connection import Database
from storage.database.tables import table_schemas
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.records import all_rows, fill, make_groups, make_run

RUNS = {"birch": 0.0, "maple": 0.5}
_VIEWS = "SELECT view_name FROM duckdb_views() WHERE NOT internal AND database_name = 'sdsearch'"


def filled(folder: Path, runs: dict[str, float]) -> Database:
    """A workspace where each run, and a replay of it, has the same ids, and figures that differ by its number."""
    storage = Storage(Workspace.open(folder))
    settings = load_settings("tiny").model_dump_json()
    for place, (run, number) in enumerate(runs.items()):
        for name, source in ((run, None), (f"{run}-replay", run)):
            record = make_run(name)
            kind = ReplayKind(source=source, first=3, last=3) if source else TrainingKind()
            changed = {"kind": kind, "updated_at": record.updated_at + timedelta(seconds=place)}
            changed |= {"num_iterations": 1, "settings_json": settings}
            storage.create_run(record.model_copy(update=changed))
            rows = {table: raised(part, number) for table, part in all_rows(make_groups(), name).items()}
            fill(storage.database, rows, name)
    assert storage.sync.flush()
    return storage.database


def raised(rows: pa.Table, number: float) -> pa.Table:
    """Return rows whose figures are higher by a number."""
    for place, field in enumerate(rows.schema):
        if pa.types.is_floating(field.type):
            rows = rows.set_column(place, field, pc.add(rows.column(place), number))
    return rows


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Database]:
    """Both runs together, and each alone."""
    folder = tmp_path_factory.mktemp("workspaces")
    alone = {run: filled(folder / run, {run: number}) for run, number in RUNS.items()}
    return {"both": filled(folder / "both", RUNS), **alone}


def rows_of(database: Database, sql: str) -> list[str]:
    return sorted(rounded(repr(row)) for row in database.query(sql).to_pylist())


def rounded(text: str) -> str:
    """Return text whose long figures are cut: a sum's last digits depend on the order of its terms."""
    return re.sub(r"\d+\.\d{9,}", lambda found: f"{float(found[0]):.8g}", text)


def test_each_view_shows_of_each_run_what_it_shows_of_it_alone(databases: dict[str, Database]) -> None:
    views = databases["both"].query(_VIEWS).column("view_name").to_pylist()
    assert len(views) >= 15
    empty = {"v_sampling", "v_retrieval"}  # They read columns of one table's one row.
    for view in views:
        sql = f'SELECT * FROM "{view}"'
        together, alone = rows_of(databases["both"], sql), [rows_of(databases[run], sql) for run in RUNS]
        assert together == sorted(alone[0] + alone[1]), view
        assert not set(alone[0]) & set(alone[1]), f"{view} names the run"
        assert bool(together) == (view not in empty), view


def test_every_table_of_a_run_has_the_run_in_its_key(databases: dict[str, Database]) -> None:
    keys = databases["both"].query(
        "SELECT table_name, constraint_column_names AS columns FROM duckdb_constraints() "
        "WHERE constraint_type = 'PRIMARY KEY' AND database_name = 'sdsearch'"
    )
    of_table = {row["table_name"]: row["columns"] for row in keys.to_pylist()}
    tables = {name for name, schema in table_schemas().items() if "run" in schema.names}
    assert len(tables) >= 14
    assert {name for name in tables if of_table[name][0] != "run"} == set()


def asked(capsys: pytest.CaptureFixture[str], database: Database, *arguments: str) -> tuple[list[str], str]:
    code = run_command(["sql", *arguments, "--workspace", str(database.path.parent)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return rounded(captured.out).splitlines(), captured.err


@pytest.mark.parametrize("query", list_canned(), ids=lambda query: query.name)
def test_a_shipped_query_is_asked_of_one_run(
    query: CannedQuery, databases: dict[str, Database], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--name", query.name, "--format", "json"]
    arguments += ["--param", "rollout=3/andorra/0"] if "rollout" in query.parameters else []
    runs = [f"{run}-replay" if query.of_replays else run for run in RUNS]
    for run in runs:
        rows, said = asked(capsys, databases["both"], *arguments, "--run", run)
        assert said == ""
        assert rows == asked(capsys, databases[run.removesuffix("-replay")], *arguments)[0]
        assert rows == asked(capsys, databases["both"], *arguments, "--param", f"run={run}")[0]
        assert rows
        assert all(json.loads(row)["run"] == run for row in rows)
    latest, said = asked(capsys, databases["both"], *arguments)
    assert latest == rows
    kind = "replay" if query.of_replays else "run"
    assert said == f"{kind} {runs[-1]}, the latest; another one with --run NAME\n"


def test_a_query_of_ones_own_asks_for_the_run_by_name(
    databases: dict[str, Database], capsys: pytest.CaptureFixture[str]
) -> None:
    query = "SELECT DISTINCT run FROM v_queries WHERE run = $run AND rollout_id = $rollout"
    arguments = (query, "--param", "rollout=3/andorra/0", "--format", "csv")
    assert asked(capsys, databases["both"], *arguments, "--run", "birch") == (["run", "birch"], "")
    rows, said = asked(capsys, databases["both"], *arguments)
    assert rows == ["run", "maple"]
    assert said == "run maple, the latest; another one with --run NAME\n"
    everything = asked(capsys, databases["both"], "SELECT DISTINCT run FROM v_queries ORDER BY 1", "--format", "csv")
    assert everything == (["run", "birch", "birch-replay", "maple", "maple-replay"], ""), "no $run, all runs"


def printed_commands(database: Database, run: str) -> Iterator[list[str]]:
    text = io.StringIO()
    RichReporter(database.path, Console(file=text, width=200)).run_done(run)
    for line in text.getvalue().splitlines():
        if line.startswith("  sdsearch "):
            yield shlex.split(line)[1:]


def test_the_next_commands_show_the_run_they_are_printed_for(
    databases: dict[str, Database], capsys: pytest.CaptureFixture[str]
) -> None:
    commands = list(printed_commands(databases["both"], "birch"))
    assert [command[0] for command in commands] == ["show", "sql", "sql"]
    for command in commands:
        assert run_command(command) == 0
        captured = capsys.readouterr()
        assert "birch" in captured.out
        assert "maple" not in captured.out + captured.err
