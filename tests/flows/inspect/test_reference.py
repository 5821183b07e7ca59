"""The reference pages are those that the program makes of its records and of its database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.app import app
from flows.inspect.reference import records_reference, tables_reference, type_name
from schemas.records.rollout import Action, Turn
from storage.database.tables import table_schemas

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize(("name", "made"), [("records", records_reference), ("tables", tables_reference)])
def test_the_page_is_the_one_that_ships(name: str, made: Callable[[], str]) -> None:
    assert (DOCS / f"{name}.md").read_text(encoding="utf-8") == made(), (
        f"docs/{name}.md is not what the program says; make it again with: sdsearch schema --{name} > docs/{name}.md"
    )


@pytest.mark.parametrize("made", [records_reference, tables_reference])
def test_every_row_has_a_meaning(made: Callable[[], str]) -> None:
    rows = [line for line in made().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if len(row.rsplit(" | ", 1)[1]) < len("Ab. |")] == []


def test_the_page_of_tables_has_every_table_with_its_key_and_the_views() -> None:
    page = tables_reference()
    sections = {section.split("\n", 1)[0]: section for section in page.split("\n## ")[1:]}
    assert set(table_schemas()) <= set(sections)
    assert "Key: `run`, `iteration`, `rollout_id`, `turn`." in sections["searches"]
    assert "Key:" not in sections["v_iterations"]
    assert "| `turn` | `INTEGER` | Its turn in the rollout, from 0. |" in sections["searches"]


def test_a_record_is_followed_by_those_that_lie_in_it() -> None:
    titles = [line.removeprefix("## ") for line in records_reference().splitlines() if line.startswith("## ")]
    assert len(titles) == len(set(titles))
    assert titles.index("Group") < titles.index("Rollout") < titles.index("Turn") < titles.index("Observation")
    assert "Settings" not in titles


def test_types_are_written_as_in_python() -> None:
    assert type_name(Turn.model_fields["observation"].annotation) == "Observation | None"
    assert type_name(tuple[tuple[bool, ...], ...]) == "tuple[tuple[bool, ...], ...]"
    assert type_name(Action) == "Search | Answer | Malformed"
    assert type_name(dict[str, float | None]) == "dict[str, float | None]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tables", "--records"], "one page at a time, not --records and --tables"),
        (["--tables", "--out", "x"], "schema --tables prints one page; leave --out out"),
    ],
)
def test_one_page_at_a_time(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["schema", *arguments])
    assert result.exit_code != 0
    assert said in str(result.exception)
