"""The cells of a notebook page: run again, `python -m tests.docs.notebook FOLDER` puts what they show into the page.

A cell is a block of Python; the block of text below it is what a notebook shows: what the cell prints, then the value
of its last line. FOLDER holds `workspace` with the run that the page is about.
"""

from __future__ import annotations

import ast
import io
import re
import sys
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.docs.session import ROOT

PAGE: Final = ROOT / "docs" / "tutorials" / "notebook.md"
_CELL: Final = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<shown>.*?)^```\n)?", re.DOTALL | re.MULTILINE
)
_WIDTH: Final = 116


class Cell(NamedTuple):
    """A cell and what the page says that it shows; None for nothing."""

    code: str
    shown: str | None


def read_cells(page: Path = PAGE) -> list[Cell]:
    """Return the cells of a page, in order."""
    return [Cell(found["code"], found["shown"]) for found in _CELL.finditer(page.read_text(encoding="utf-8"))]


def run_cells(cells: list[Cell], folder: Path) -> list[str | None]:
    """Run cells in a folder, one after another in one namespace, and return what each shows, None for nothing."""
    import pandas

    options = ("display.width", _WIDTH, "display.max_columns", 20, "display.max_colwidth", 44)
    namespace: dict[str, Any] = {}
    with chdir(folder), pandas.option_context(*options):
        shown = [_run(cell.code, namespace) for cell in cells]
    # Paths as from the folder.
    return [text and text.replace(f"{folder.resolve()}/", "") for text in shown]


def _run(code: str, namespace: dict[str, Any]) -> str | None:
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
            if value is not None:
                print(value)
    lines = [line.rstrip() for line in printed.getvalue().rstrip().splitlines()]
    return "\n".join([*lines, ""]) if lines else None


def write(page: Path, folder: Path) -> None:
    """Put what the cells show into the page."""
    shown = iter(run_cells(read_cells(page), folder))

    def again(found: re.Match[str]) -> str:
        text = next(shown)
        return f"```python\n{found['code']}```\n" + (f"\n```text\n{text}```\n" if text else "")

    page.write_text(_CELL.sub(again, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write(PAGE, Path(sys.argv[1]))
