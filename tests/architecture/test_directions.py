"""The packages' directions: flows -> {sdsearch, storage} -> schemas, and who may touch what."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "schemas": {"schemas"},
    "sdsearch": {"sdsearch", "schemas"},
    "storage": {"storage", "schemas"},
    "flows": {"flows", "sdsearch", "storage", "schemas"},
}
# Library -> the packages that may import it.
OWNERS = {
    "prefect": {"flows"},
    "typer": {"flows"},
    "rich": {"flows"},
    "duckdb": {"storage"},
    "torch": {"flows", "sdsearch", "storage"},
    "transformers": {"flows", "sdsearch", "storage"},
    "peft": {"flows", "sdsearch"},
}
WRITERS = {
    "write_text",
    "write_bytes",
    "mkdir",
    "makedirs",
    "touch",
    "unlink",
    "rmdir",
    "rmtree",
    "rename",
    "save_pretrained",
    "save_file",
    "savez",
    "save",
    "write_index",
    "write_table",
    "to_parquet",
}
# A model's own method fills the folder that storage opens for it.
WRITERS_ALLOWED = {"flows": {"save_pretrained"}}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50
SOURCES = sorted(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the top-level names that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def wrong_imports(package: str, source: str) -> set[str]:
    """Return what a module of the package imports and must not."""
    found = set(imports(ast.parse(source)))
    foreign = {name for name in found & set(ALLOWED) if name not in ALLOWED[package]}
    return foreign | {name for name in found & set(OWNERS) if package not in OWNERS[name]}


def file_writes(package: str, source: str) -> set[str]:
    """Return the calls of a module of the package that write files, empty for storage."""
    if package == "storage":
        return set()
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {name for call in calls if (name := written_by(call))} - WRITERS_ALLOWED.get(package, set())


def written_by(call: ast.Call) -> str | None:
    """Return the name of a call that writes to the disk, None for any other."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in WRITERS:
        return name
    arguments = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    texts = [argument.value for argument in arguments if isinstance(argument, ast.Constant)]
    modes = [text for text in texts if isinstance(text, str) and len(text) <= 3 and set(text) & set("wax+")]
    return "open" if name in ("open", "fdopen") and modes else None


def functions(source: str) -> Iterator[tuple[str, int]]:
    """Yield each function's name and number of lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=where)
def test_a_module_keeps_the_house_rules(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    package = package_of(path)
    assert not wrong_imports(package, source), f"{where(path)} imports what its package must not"
    assert not file_writes(package, source), f"{where(path)} writes files; only storage does"
    assert source.count("\n") <= MAX_FILE_LINES, f"{where(path)} is too long"
    long = {name: lines for name, lines in functions(source) if lines > MAX_FUNCTION_LINES}
    assert not long, f"{where(path)} has functions that are too long: {long}"


def test_the_tilde_is_read_in_one_place() -> None:
    readers = [where(path) for path in SOURCES if "expanduser" in path.read_text(encoding="utf-8")]
    assert readers == ["schemas/paths.py"], "a path that a person writes is read by schemas.paths.local_path"


def test_every_package_is_looked_at() -> None:
    assert {package_of(path) for path in SOURCES} == set(ALLOWED)


@pytest.mark.parametrize(
    ("package", "source", "wrong"),
    [
        ("sdsearch", "from storage.database.connection import Database", {"storage"}),
        ("storage", "def f():\n    import sdsearch.credit.teacher", {"sdsearch"}),
        ("schemas", "import torch.nn as nn", {"torch"}),
        ("sdsearch", "from prefect import flow", {"prefect"}),
        ("flows", "import duckdb", {"duckdb"}),
        ("flows", "import sdsearch\nfrom storage import files", set()),
    ],
)
def test_a_wrong_import_is_seen(package: str, source: str, wrong: set[str]) -> None:
    assert wrong_imports(package, source) == wrong


@pytest.mark.parametrize(
    ("package", "source", "writes"),
    [
        ("flows", "open(path, 'w')", {"open"}),
        ("flows", "path.open(mode='ab')", {"open"}),
        ("sdsearch", "path.open('x')", {"open"}),
        ("sdsearch", "model.save_pretrained(path)", {"save_pretrained"}),
        ("flows", "path.write_text('w')", {"write_text"}),
        ("flows", "model.save_pretrained(path)", set()),
        ("sdsearch", "open(path)\npath.open('rb')\ntext.replace('w', 'a')", set()),
        ("storage", "path.write_bytes(b'')", set()),
    ],
)
def test_a_write_is_seen(package: str, source: str, writes: set[str]) -> None:
    assert file_writes(package, source) == writes


def test_schemas_import_fast_and_without_heavy_libraries() -> None:
    names = ", ".join(f"schemas.{path.stem}" for path in (ROOT / "schemas").glob("[a-z]*.py"))
    program = (
        f"import sys, time; start = time.process_time(); import {names}; seconds = time.process_time() - start; "
        "heavy = {'torch', 'transformers', 'prefect', 'duckdb', 'numpy'} & set(sys.modules); print(seconds, *heavy)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, *heavy = result.stdout.split()
    assert not heavy
    assert float(seconds) < 1.0  # Of the processor, so that a busy machine does not count.
