"""Columns are described once: by the record, by what a view reads, or by the SQL."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb

from schemas.records.ledger import StageKey
from schemas.records.question import Question
from schemas.records.reports import SamplingReport
from schemas.records.update import StepReport
from storage.database.comments import RECORDS
from storage.database.connection import Database
from storage.database.tables import ddl
from storage.workspace import Workspace


def test_the_sql_comments_on_what_is_computed_and_on_nothing_that_a_record_says() -> None:
    with duckdb.connect() as connection:
        connection.execute(ddl())
        said = {(table, column) for table, column in connection.execute(COMMENTED).fetchall()}
        views = connection.execute("SELECT view_name, sql FROM duckdb_views() WHERE NOT internal").fetchall()
        computed = {(view, column) for view, sql in views for column in computed_columns(connection, sql)}
    assert computed - said == set(), "a computed column would take the comment of another column of its name"
    # These are called as a record's field, and hold something else.
    other = {("evaluations", "iteration"), ("evaluation_answers", "iteration")}
    fields = {(table, name) for table, records in RECORDS.items() for record in records for name in record.model_fields}
    assert said & fields == other


COMMENTED = "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND comment IS NOT NULL"


def computed_columns(connection: duckdb.DuckDBPyConnection, view_sql: str) -> set[str]:
    """Return the columns of a view that are neither a column of another table nor a star."""
    (tree,) = connection.execute(
        "SELECT json_serialize_sql(?)", [view_sql.partition(" AS ")[2].rstrip(";\n")]
    ).fetchone()
    selected = json.loads(tree)["statements"][0]["node"]["select_list"]
    return {item["alias"] for item in selected if item["class"] not in ("COLUMN_REF", "STAR") and item["alias"]}


def test_a_column_is_described_by_its_record_by_what_a_view_reads_or_by_the_sql(tmp_path: Path) -> None:
    database = Database(Workspace.open(tmp_path))
    sql = "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal"
    said = {(row["table_name"], row["column_name"]): row["comment"] for row in database.query(sql).to_pylist()}
    field = StepReport.model_fields["sd_loss"].description
    assert field is not None
    assert said["update_metrics", "sd_loss"] == said["v_steps", "sd_loss"] == field
    mean = f"Mean over the iteration's steps: {field[0].lower()}{field[1:]}"
    assert said["v_updates", "sd_loss"] == said["v_iterations", "sd_loss"] == mean
    assert said["searches", "run"] == StageKey.model_fields["run"].description
    assert said["v_queries", "question"] == Question.model_fields["question"].description
    assert said["v_queries", "num_tokens"] == "Query tokens that the teacher saw; empty when no teacher ran."
    assert said["v_sampling", "num_turns"] == SamplingReport.model_fields["num_turns"].description
