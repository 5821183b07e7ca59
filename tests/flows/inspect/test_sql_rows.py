"""Rows of `sdsearch sql`: columns and types as DuckDB's own COPY writes them, one line for what cannot be asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import duckdb
import pytest

from flows.app import run_command
from storage.database.connection import Database
from storage.workspace import Workspace

# Expressions whose CSV and JSON are DuckDB's own, one a type or an edge of one.
SCALARS = [
    "1.50::DECIMAL(5, 2)",
    "12345678901234567890.123456789::DECIMAL(38, 9)",
    "170141183460469231731687303715884105727::HUGEINT",
    "340282366920938463463374607431768211455::UHUGEINT",
    "18446744073709551615::UBIGINT",
    "(SELECT sum(range) FROM range(4))",
    "DATE '9999-12-31' + 1",
    "DATE '0044-03-15 (BC)'",
    "'infinity'::DATE",
    "'-infinity'::TIMESTAMP",
    "TIMESTAMP '290000-01-01 00:00:00'",
    "TIMESTAMPTZ '2020-01-01 00:00:00+00'",
    "'2020-01-01 00:00:00.123456789'::TIMESTAMP_NS",
    "INTERVAL '1 year 2 months 3 days 4 hours'",
    "TIME '24:00:00'",
    "'12:00:00+05'::TIMETZ",
    r"'a\x00b\xff'::BLOB",
    "uuid '00000000-0000-0000-0000-000000000001'",
    "'10101'::BIT",
    "'x'::ENUM ('x', 'y')",
    "union_value(k := 1)",
    "true",
    "NULL",
    "1e300",
    "1e-7",
    "0.1::FLOAT",
    "''",
    "' a '",
    "'a,b\"c'",
    "e'a\\rb'",
    "e'a\\nb'",
    "'ä \U0001f600'",
    "chr(0) || 'NaN'",
    "'{\"a\": [1, NaN]}'",
]
NESTED = [
    "[1, NULL]",
    "{'a': 1, 'b': {'c': DATE '2020-01-01'}}",
    "map {'k': 1}",
    "map {1.5: 'x'}",
    "map {[1, 2]: 'x'}",
    "[DATE '0044-03-15 (BC)']",
    "'{\"a\": 1}'::JSON",
]
NOT_FINITE = ["'nan'::DOUBLE", "'-inf'::FLOAT", "['inf'::DOUBLE, 1]", "{'a': 'nan'::DOUBLE, 'NaN': 'NaN'}"]

Ask = Callable[..., str]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    opened = Workspace.open(tmp_path_factory.mktemp("workspace"))
    assert Database(opened).query("SELECT * FROM runs").num_rows == 0
    return opened.root


@pytest.fixture
def ask(workspace: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Ask:
    def run(*arguments: str) -> str:
        code = run_command(["sql", *arguments, "--workspace", str(workspace)])
        captured = capfdbinary.readouterr()
        assert code == 0, captured.err
        return captured.out.decode()

    return run


def copied(query: str, folder: Path, form: str) -> str:
    """What DuckDB's own COPY writes for a query."""
    with duckdb.connect() as connection:
        connection.execute(f"COPY ({query}) TO '{folder}/copied' (FORMAT {form})")
    return (folder / "copied").read_bytes().decode()


def refuse(word: str) -> NoReturn:
    raise AssertionError(f"{word} is no JSON")


def parsed(line: str) -> Any:
    return json.loads(line, parse_constant=refuse, parse_float=Decimal)


@pytest.mark.parametrize("form", ["csv", "json"])
def test_every_type_is_written_as_copy_writes_it(form: str, ask: Ask, tmp_path: Path) -> None:
    values = SCALARS if form == "csv" else [*SCALARS, *NESTED]
    query = "SELECT " + ", ".join(f"{value} AS c{place}" for place, value in enumerate(values))
    assert ask(query, "--format", form) == copied(query, tmp_path, form)


def test_nested_values_are_json_in_csv(ask: Ask) -> None:
    query = "SELECT ['a,b', NULL] AS a, {'k': map {1: 'x'}} AS b, ['nan'::DOUBLE] AS c"
    assert ask(query, "--format", "csv") == 'a,b,c\n"[""a,b"",null]","{""k"":{""1"":""x""}}",[null]\n'


@pytest.mark.parametrize("value", NOT_FINITE)
def test_what_json_cannot_say_is_null(value: str, ask: Ask, tmp_path: Path) -> None:
    query = f"SELECT {value} AS a"
    theirs = json.loads(copied(query, tmp_path, "json"), parse_constant=lambda word: None)
    assert parsed(ask(query, "--format", "json")) == theirs


def test_equal_names_stay_columns_of_their_own(ask: Ask, tmp_path: Path) -> None:
    query = 'SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS a, 5 AS "A"'
    assert ask(query, "--format", "csv") == "a,a,a_1,a,A\n1,2,3,4,5\n"
    assert ask(query, "--format", "json") == copied(query, tmp_path, "json")
    lines = [line.split() for line in ask(query).splitlines()]
    assert ["a", "a", "a_1", "a", "A"] in lines
    assert ["1", "2", "3", "4", "5"] in lines
    wide = ", ".join(f"{place} AS a" for place in range(13))
    assert [["a", str(place)] for place in range(13)] == [
        line.split() for line in ask(f"SELECT {wide}").splitlines() if line.split()[:1] == ["a"]
    ]


@pytest.mark.parametrize("form", ["table", "csv", "json"])
@pytest.mark.parametrize("query", ["SELECT 1 AS a WHERE false", "/* nothing */", "", "SELECT range AS a FROM range(3)"])
def test_few_rows_or_none(query: str, form: str, ask: Ask) -> None:
    text = ask(query, "--format", form)
    assert text.split().count("a") == (form != "json" and " AS a" in query)
    assert len([line for line in text.splitlines() if line.strip(" a─")]) == 3 * ("range" in query)


def test_the_order_of_the_query_is_kept(ask: Ask) -> None:
    lines = ask("SELECT range AS a FROM range(300000) ORDER BY hash(range)", "--format", "csv").splitlines()[1:]
    with duckdb.connect() as connection:
        expected = connection.sql("SELECT range FROM range(300000) ORDER BY hash(range)").fetchall()
    assert [int(line) for line in lines] == [row[0] for row in expected]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["SELECT 1; SELECT 2"], "it holds 2 statements; give one at a time"),
        (["COMMIT"], "no transaction is active"),
        (["SELECT $a"], "the query needs $a; give it with --param a=VALUE"),
        (["SELECT $a", "--param", "b=1", "--param", "a=1"], "the query has no $b (it has: $a); leave --param b out"),
        (["SELECT 1", "--param", "b=1"], "(it has: no parameter)"),
        (["SELECT $a", "--param", "a=1", "--param", "a=2"], "--param a is given twice (1, 2)"),
        (["SELECT 1", "--run", "x"], "--run x: the query does not hold $run; leave it out"),
        (["SELECT $run", "--run", "x", "--param", "run=y"], "--param run names one already"),
        (["SELECT $run", "--run", "x"], "no run 'x' in this workspace"),
        (["SELECT $run"], "the workspace has no run that trains"),
        (["--name", "replay"], "the workspace has no replay"),
        (["SELECT $a", "--param", f"a={'9' * 400}"], "the query does not run: "),
        (["SELECT $a::DATE", "--param", "a=x"], "the query does not run: Conversion Error: "),
        (["SELECT '\udcff'"], "surrogates not allowed"),
        (["SELECT $a", "--param", "a=\udcff"], "the query does not run: "),
        (["SELECT 1 AS\n FROM runs"], 'at or near "runs" (line 2)'),
        (["SELECT " + "(" * 3000 + "1"], "the query does not run: "),
        (["\0 \x1b[31m"], "the query does not run: "),
        (["SELECT * FROM range(10) t(a), (SELECT error('x' || chr(10) || 'y'))"], "x y"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    arguments: list[str], said: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["sql", *arguments, "--workspace", str(workspace)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_a_long_query_and_a_long_text(ask: Ask) -> None:
    text = "x" * 10_000_000
    assert ask(f"SELECT '{text}' AS a", "--format", "csv") == f"a\n{text}\n"
    assert ask("SELECT length($a) AS a", "--param", f"a={text}", "--format", "csv") == "a\n10000000\n"


@pytest.mark.parametrize("form", ["csv", "json"])
def test_no_column_of_ours_needs_more_than_64_bits(form: str, ask: Ask) -> None:
    wide = "data_type LIKE '%HUGEINT%' OR data_type LIKE 'DECIMAL%'"
    query = f"SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal AND ({wide})"
    assert ask(query, "--format", form).splitlines()[form == "csv" :] == []
    assert "num_dropped_attempts" in ask("DESCRIBE v_iterations", "--format", form)
