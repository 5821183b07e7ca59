"""The tutorial's cells run, on a run that is smaller than the page's, and show what the page shows in kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.notebook import read_cells, run_cells

pytestmark = pytest.mark.slow
_COLUMNS = re.compile(r"^ {2,}[a-z_]+( +[a-z_]+)*$")
"""The first line of a data frame: its columns."""


def kind_of(shown: str | None) -> str:
    """Return a data frame's columns, and of other output its first word."""
    first = (shown or "").partition("\n")[0]
    return " ".join(first.split()) if _COLUMNS.match(first) else " ".join(re.findall(r"^[A-Za-z]+", first))


def test_the_cells_run_and_show_what_the_page_shows(folder: Path) -> None:
    cells = read_cells()
    assert len(cells) >= 10
    shown = run_cells(cells, folder)
    assert [kind_of(cell.shown) for cell in cells] == [kind_of(text) for text in shown]
    difference = next(text for cell, text in zip(cells, shown, strict=True) if "update.steps[0].loss" in cell.code)
    assert difference is not None
    assert abs(float(difference.splitlines()[-1])) < 1e-6
