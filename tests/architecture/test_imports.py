"""The contracts in pyproject.toml are kept, and see what breaks them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("flows", "schemas", "sdsearch", "storage")


def lint_imports(folder: Path) -> tuple[int, str]:
    """Return the exit code of import-linter over the packages of a folder, and what it says on one line."""
    program = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    result = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=folder,
        env={"PATH": "", "PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, " ".join((result.stdout + result.stderr).split())


def test_the_contracts_are_kept() -> None:
    code, said = lint_imports(ROOT)
    assert code == 0, said


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.mark.parametrize(
    ("file", "source", "broken"),
    [
        ("sdsearch/seeds.py", "from storage.database.connection import Database", "sdsearch.seeds -> storage"),
        ("storage/errors.py", "def f():\n    import sdsearch.credit.teacher", "storage.errors -> sdsearch"),
        ("schemas/base.py", "import torch.nn as nn", "schemas.base -> torch"),
        ("sdsearch/seeds.py", "from prefect import flow", "sdsearch.seeds -> prefect"),
        ("flows/resume.py", "import duckdb", "flows.resume -> duckdb"),
        ("flows/run/live.py", "import flows.training.loop", "flows.run.live -> flows.training"),
        ("sdsearch/credit/teacher.py", "import sdsearch.training.loss", "sdsearch.credit.teacher -> sdsearch.training"),
        ("storage/disk/files.py", "import storage.workspace", "storage.disk.files -> storage.workspace"),
    ],
)
def test_a_wrong_import_breaks_a_contract(copied: Path, file: str, source: str, broken: str) -> None:
    path = copied / file
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n{source}\n", encoding="utf-8")
    try:
        code, said = lint_imports(copied)
    finally:
        path.write_text(before, encoding="utf-8")
    assert code == 1
    assert broken in said
