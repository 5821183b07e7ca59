"""The executed notebooks of docs/: `python -m tests.docs.executed FOLDER` runs them again and keeps what they show.

FOLDER holds `workspace` with the run that the notebooks are about: the quickstart's, named `first`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import nbformat
from nbclient import NotebookClient

from tests.docs.session import ROOT

NOTEBOOKS: Final = sorted((ROOT / "docs").rglob("*.ipynb"))
MAX_BYTES: Final = 300_000


def read(path: Path) -> Any:
    """Return a notebook of a file; an error for what is none."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def execute(notebook: Any, folder: Path) -> Any:
    """Return a copy of a notebook whose cells were run in a folder by a kernel of their own; their errors are raised.

    Nothing that differs from one time to the next is kept: no times, and paths as from the folder.
    """
    fresh = nbformat.from_dict(notebook)
    former = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)  # The kernel reads the sources here, wherever it runs.
    try:
        place = {"metadata": {"path": str(folder)}}
        client = NotebookClient(fresh, timeout=300, kernel_name="python3", resources=place)
        client.execute()
    finally:
        if former is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = former
    for cell in fresh.cells:
        cell.metadata.pop("execution", None)
    text = nbformat.writes(fresh).replace(f"{folder.resolve()}/", "")
    return nbformat.reads(text, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    """Return the cells that are run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[str]:
    """Return what a cell shows, in kind: each output's type, and of data the richest form."""
    forms = ("image/png", "text/html", "text/plain")
    return [
        next(form for form in forms if form in output.data) if "data" in output else output.output_type
        for output in cell.outputs
    ]


if __name__ == "__main__":
    for path in NOTEBOOKS:
        nbformat.write(execute(read(path), Path(sys.argv[1])), path)
