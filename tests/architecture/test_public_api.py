"""The one exception to `sdsearch -> schemas`: the public names of `sdsearch/__init__.py` are loaded from flows."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import sdsearch

ROOT = Path(__file__).parents[2]
LOADERS = {"import_module", "__import__"}


def test_modules_are_loaded_by_name_in_one_file_of_sdsearch_for_the_public_names() -> None:
    found = set()
    for path in (ROOT / "sdsearch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in LOADERS:
                found.add(path.relative_to(ROOT).as_posix())
    # sdsearch/plugins loads what a person names in the settings, none of our own packages.
    assert found - {"sdsearch/plugins/loading.py"} == {"sdsearch/__init__.py"}


def test_the_public_names_come_from_flows_api_or_from_where_commands_have_them() -> None:
    others = {name: home for name, home in sdsearch._HOMES.items() if not home.startswith("flows.api.")}
    assert others == {"UserError": "schemas.errors", "load_settings": "flows.settings.load"}


def test_importing_sdsearch_loads_nothing_else() -> None:
    program = "import sys; before = set(sys.modules); import sdsearch; print(*sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert not loaded & {"flows", "storage", "schemas", "torch", "pydantic", "pandas", "duckdb"}
    assert "sdsearch" in loaded
