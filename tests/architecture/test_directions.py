"""What import-linter cannot say: who writes files, how long files and functions are, how fast schemas load.

The directions of imports are contracts in pyproject.toml.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("flows", "schemas", "sdsearch", "storage")
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
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


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
    assert not file_writes(package, source), f"{where(path)} writes files; only storage does"
    assert source.count("\n") <= MAX_FILE_LINES, f"{where(path)} is too long"
    long = {name: lines for name, lines in functions(source) if lines > MAX_FUNCTION_LINES}
    assert not long, f"{where(path)} has functions that are too long: {long}"


def test_the_tilde_is_read_in_one_place() -> None:
    readers = [where(path) for path in SOURCES if "expanduser" in path.read_text(encoding="utf-8")]
    assert readers == ["schemas/paths.py"], "a path that a person writes is read by schemas.paths.local_path"


def test_every_package_is_looked_at() -> None:
    assert {package_of(path) for path in SOURCES} == set(PACKAGES)


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


def open_matches(source: str) -> list[int]:
    """Return the lines of the matches whose last case does not take whatever is left: `assert_never`, or the rest."""
    last_cases = {node.lineno: node.cases[-1] for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Match)}
    return [
        line
        for line, case in last_cases.items()
        if case.guard or not (isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=where)
def test_a_match_lets_nothing_fall_through(path: Path) -> None:
    assert not open_matches(path.read_text(encoding="utf-8")), f"{where(path)}: end it with assert_never"


def test_an_open_match_is_seen() -> None:
    source = "match a:\n    case 'x':\n        pass\n"
    assert open_matches(source) == [1]
    assert open_matches(f"{source}    case unknown if b:\n        pass\n") == [1]
    assert open_matches(f"{source}    case unknown:\n        assert_never(unknown)\n") == []
