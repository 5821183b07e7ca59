"""The executed notebook: it runs again, on a smaller run, and shows in kind what it shows in the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.docs.executed import MAX_BYTES, NOTEBOOKS, code_cells, execute, kinds, read

(NOTEBOOK,) = NOTEBOOKS


def shown(notebook: Any, cell_id: str) -> str:
    """Return what a cell shows, as HTML where it has that."""
    (cell,) = (cell for cell in code_cells(notebook) if cell.id == cell_id)
    data = cell.outputs[-1].get("data", {})
    return str(data.get("text/html", data.get("text/plain", "")))


def check_content(notebook: Any) -> None:
    """A rollout, a heat map with shaded tokens and a curve are there."""
    assert shown(notebook, "open").startswith("Run('first', done, ")
    assert all(name in shown(notebook, "group") for name in ("queries", "answer", "advantage", "label"))
    (turns,) = (cell for cell in code_cells(notebook) if cell.id == "turns")
    assert "policy: " in turns.outputs[0].text
    for cell in ("heat", "weighted"):
        table = shown(notebook, cell)
        assert table.count("<span style='background: rgba(") > 10
        assert "CORRECT" in table
    assert shown(notebook, "heat") != shown(notebook, "weighted")
    assert [kinds(cell)[-1] for cell in code_cells(notebook) if cell.id in ("curve", "means")] == ["image/png"] * 2


def test_the_outputs_in_the_documentation_are_whole_and_small() -> None:
    notebook = read(NOTEBOOK)
    assert NOTEBOOK.stat().st_size <= MAX_BYTES
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all("/tmp/" not in str(cell.outputs) and "/home/" not in str(cell.outputs) for cell in cells)
    assert not [kind for cell in cells for kind in kinds(cell) if kind == "error"]
    assert "25 of 25 iterations" in shown(notebook, "open")
    check_content(notebook)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_the_documentation_shows(folder: Path) -> None:
    before = read(NOTEBOOK)
    after = execute(before, folder)
    assert [kinds(cell) for cell in code_cells(after)] == [kinds(cell) for cell in code_cells(before)]
    check_content(after)
    assert "3 of 3 iterations" in shown(after, "open")
