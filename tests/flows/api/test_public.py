"""The public names stay as they are, load what they need alone, and their examples run."""

from __future__ import annotations

import ast
import doctest
import os
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from types import ModuleType

import pytest

import flows.api.inputs
import flows.api.iteration
import flows.api.method
import flows.api.policy
import flows.api.workspace
import sdsearch
from tests.flows.api.signatures import TYPES, signatures

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
MODULES = (flows.api.workspace, flows.api.iteration, flows.api.inputs, flows.api.policy, flows.api.method)


def test_names_and_signatures_are_those_that_were_promised() -> None:
    promised = (HERE / "public.txt").read_text(encoding="utf-8").splitlines()
    assert list(signatures()) == promised, "a change that is meant: python -m tests.flows.api.signatures, and CHANGELOG"


def test_there_are_a_dozen_and_python_editors_and_type_checkers_see_the_same() -> None:
    assert len(sdsearch.__all__) == 12
    assert set(sdsearch.__all__) <= set(dir(sdsearch))
    stub = ast.parse((ROOT / "sdsearch" / "__init__.pyi").read_text(encoding="utf-8"))
    imported = [
        (alias.name, f"{node.module}.{alias.name}")
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert dict(imported) == {name: f"{home}.{name}" for name, home in sdsearch._HOMES.items()}


def test_another_name_is_none() -> None:
    with pytest.raises(AttributeError, match="module 'sdsearch' has no attribute 'open_ru'"):
        _ = sdsearch.open_ru


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_example_runs(folder: Path, module: ModuleType) -> None:
    with chdir(folder):
        found = doctest.testmod(module, globs={"sdsearch": sdsearch}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted
    assert not found.failed


def test_every_public_function_and_what_it_returns_is_documented_with_an_example_or_a_field() -> None:
    functions = [getattr(sdsearch, name) for name in sdsearch.__all__ if name not in ("UserError", "load_settings")]
    assert [function.__name__ for function in functions if ">>> " not in (function.__doc__ or "")] == []
    bare = [
        f"{kind.__name__}.{name}"
        for kind in TYPES
        for name, value in vars(kind).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property)) and not value.__doc__
    ]
    assert bare == []


@pytest.mark.slow
def test_reading_loads_no_torch(folder: Path) -> None:
    program = (
        "import sys, sdsearch; first = {'pandas', 'duckdb', 'pydantic', 'torch'} & set(sys.modules); "
        "it = sdsearch.open_run('workspace', 'first').iteration(3); it.frame(); it.records().groups; it.credit(); "
        "print(*first, 'then', *({'torch', 'transformers', 'prefect', 'faiss'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["then"]
