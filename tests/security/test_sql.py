"""SQL: every value is a parameter, and what a person types can neither write nor reach beyond the tables."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.database.connection import Database
from storage.errors import QueryError
from storage.workspace import Workspace

ROOT = Path(__file__).parents[2]
RUNNERS = {"execute", "executemany", "sql", "query", "from_query", "read_only_user_query"}
KEYWORDS = re.compile(
    r"\s*(SELECT|INSERT|DELETE|UPDATE|ATTACH|DETACH|COPY|CREATE|DROP|ALTER|SET|PRAGMA|WITH|IMPORT|EXPORT|CHECKPOINT) ",
)
# What may be put into SQL text: names that the code itself made, never a value that came from outside.
NAMES_FROM_CODE = {
    "table_name": "asserted to be a table of the shipped DDL",
    "name": "a table's or a column's name, read from the catalogue or a record type",
    "verb": "INSERT, or INSERT OR IGNORE",
    "options": "READ_ONLY, or the storage version",
    "quoted": "the database's path, quotes doubled: ATTACH takes no parameter",
    "', '.join(row)": "the field names of a record type",
    "values": "the placeholders of those fields",
    "where": "one of two constants",
}


def sql_made_of_values(source: str) -> list[str]:
    """Return the pieces of SQL text in a module that are neither constants nor names from code."""
    tree = ast.parse(source)
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args)
    run = [call.args[0] for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in RUNNERS]
    made = [node for node in ast.walk(tree) if looks_like_sql(node)]
    return sorted({piece for text in [*run, *made] for piece in foreign_pieces(text)})


def looks_like_sql(node: ast.AST) -> bool:
    """True for text that is put together and begins as SQL does, wherever it goes."""
    if isinstance(node, ast.JoinedStr):
        first = node.values[0]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
        first = node.left
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        first = node.func.value
    else:
        return False
    return isinstance(first, ast.Constant) and isinstance(first.value, str) and KEYWORDS.match(first.value) is not None


def foreign_pieces(text: ast.AST) -> Iterator[str]:
    if isinstance(text, ast.JoinedStr):
        values = [part.value for part in text.values if isinstance(part, ast.FormattedValue)]
        yield from (ast.unparse(value) for value in values if not from_code(value))
    elif isinstance(text, ast.BinOp) or (isinstance(text, ast.Call) and ast.unparse(text.func).endswith(".format")):
        yield ast.unparse(text)


def from_code(value: ast.expr) -> bool:
    text = ast.unparse(value)
    return text in NAMES_FROM_CODE or re.fullmatch(r"_?[A-Z][A-Z0-9_]*", text) is not None


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("c.execute(f\"SELECT * FROM runs WHERE run = '{run}'\")", ["run"]),
        ("c.execute(\"SELECT * FROM runs WHERE run = '%s'\" % run)", ["\"SELECT * FROM runs WHERE run = '%s'\" % run"]),
        ('text = "DELETE FROM runs WHERE run = " + run', ["'DELETE FROM runs WHERE run = ' + run"]),
        ('text = f"DELETE FROM runs WHERE run = {run}"', ["run"]),
        ('text = "SELECT {}".format(run)', ["'SELECT {}'.format(run)"]),
        ('c.execute(f"DELETE FROM {table_name} WHERE {_OF_STAGE}", key)', []),
        ('c.execute("SELECT * FROM runs WHERE run = $run", {"run": run})', []),
    ],
)
def test_a_value_in_sql_is_seen(source: str, found: list[str]) -> None:
    assert sql_made_of_values(source) == found


def test_no_sql_is_made_of_values() -> None:
    modules = [path for package in ("storage", "flows") for path in (ROOT / package).rglob("*.py")]
    found = {path.name: pieces for path in modules if (pieces := sql_made_of_values(path.read_text(encoding="utf-8")))}
    assert not found, f"give values as parameters, or say in NAMES_FROM_CODE why these are none: {found}"


def test_a_workspace_with_quotes_in_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "a'; DROP TABLE runs; --"
    database = Database(Workspace.open(folder))
    assert database.query("SELECT * FROM runs").num_rows == 0
    assert sorted(path.name for path in folder.iterdir()) == ["sdsearch.duckdb"]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    database = Database(Workspace.open(tmp_path_factory.mktemp("workspace")))
    database.query("SELECT 1")
    return database


REACHES_OUT = [
    "COPY runs TO '{folder}/out.csv'",
    "COPY runs FROM '{folder}/secret.csv'",
    "EXPORT DATABASE '{folder}/exported'",
    "IMPORT DATABASE '{folder}'",
    "ATTACH '{folder}/other.duckdb' AS other",
    "ATTACH ':memory:' AS other; COPY runs TO '{folder}/out.csv'",
    "SELECT * FROM read_csv('{folder}/secret.csv')",
    "SELECT * FROM read_text('{folder}/secret.csv')",
    "SELECT * FROM read_blob('{folder}/secret.csv')",
    "SELECT * FROM read_json('{folder}/secret.csv')",
    "SELECT * FROM sniff_csv('{folder}/secret.csv')",
    "SELECT * FROM parquet_metadata('{folder}/secret.csv')",
    "SELECT * FROM '{folder}/secret.csv'",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM 'http://127.0.0.1:9/x.parquet'",
    "CREATE MACRO f() AS TABLE SELECT * FROM read_csv('{folder}/secret.csv')",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{folder}/evil.duckdb_extension'",
    "CREATE SECRET s (TYPE http)",
    "SET enable_external_access = true",
    "RESET enable_external_access",
    "SET lock_configuration = false",
    "SET temp_directory = '{folder}'",
    "SET allow_unsigned_extensions = true",
    "SET python_enable_replacements = true",
    "PRAGMA profiling_output = '{folder}/out.csv'",
    "SELECT 1; SET GLOBAL home_directory = '{folder}'",
    "SELECT * FROM reaches_out",
]
WRITES = [
    "DELETE FROM runs",
    "UPDATE runs SET status = 'done'",
    "INSERT INTO runs SELECT * FROM runs",
    "DROP TABLE runs",
    "ALTER TABLE runs ADD COLUMN x INTEGER",
    "CREATE TABLE t (a INTEGER)",
    "BEGIN; DELETE FROM runs; COMMIT",
    "SELECT 1; DELETE FROM runs",
    "DETACH sdsearch; ATTACH '{folder}/sdsearch.duckdb' AS sdsearch",
]


@pytest.mark.parametrize("sql", [*REACHES_OUT, *WRITES])
def test_what_a_person_types_stays_inside_and_writes_nothing(sql: str, database: Database) -> None:
    folder = database.path.parent
    (folder / "secret.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    before = (sorted(folder.rglob("*")), database.path.read_bytes())
    with pytest.raises(QueryError, match="the query does not run: "):
        database.read_only_user_query(sql.format(folder=folder))
    assert (sorted(folder.rglob("*")), database.path.read_bytes()) == before
    assert database.query("SELECT 1 AS one").to_pylist() == [{"one": 1}], "and the program's own connection works on"
