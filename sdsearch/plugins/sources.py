"""The source files that a module is made of: its own, and those beside it that it imports. Nothing is executed."""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final, NamedTuple

_INSTALLED: Final = ("site-packages", "dist-packages")


class Sources(NamedTuple):
    """The files of a module, by their path below `folder`, with the sha256 (hex) of each."""

    folder: Path
    hashes: dict[str, str]


def find_module(name: str) -> ModuleSpec | None:
    """Return where a module would be imported from, without importing it or its packages; None where it is not."""
    importlib.invalidate_caches()
    spec, search = None, None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        if depth > 1 and search is None:
            return None  # A module, not a package.
        spec = _find(".".join(parts[:depth]), search)
        if spec is None:
            return None
        search = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    return spec


def _find(name: str, search: list[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        spec = finder.find_spec(name, search)
        if spec is not None:
            return spec
    return None


def module_sources(module: str, file: Path) -> Sources:
    """Return the sources of a module: its file, and what it imports, directly or not, from where it lies.

    From an installed package that is the same top-level package; from any other folder also the modules and packages
    that lie beside the top-level one, as for a script.
    """
    file = file.resolve()
    depth = module.count(".") + (file.name == "__init__.py")
    folder = file.parents[depth]
    top = module.partition(".")[0]
    alone = folder.name in _INSTALLED or _is_ours(folder)
    found: dict[str, Path] = {}
    waiting = [*_packages_of(module, folder), (module, file)]
    while waiting:
        name, path = waiting.pop()
        if name in found:
            continue
        found[name] = path
        for imported in _imports(name, path):
            if imported.partition(".")[0] == top or not alone:
                waiting += [item for item in _packages_of(f"{imported}.", folder) if item[0] not in found]
    hashes = {path.relative_to(folder).as_posix(): _sha256(path) for path in found.values()}
    return Sources(folder, dict(sorted(hashes.items())))


def _is_ours(folder: Path) -> bool:
    return folder == Path(__file__).resolve().parents[2]


def _packages_of(module: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the packages on the way to a module, and for a name that ends with a dot the module itself."""
    parts = module.split(".")[:-1]
    for depth in range(1, len(parts) + 1):
        path = folder.joinpath(*parts[:depth])
        for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
            if file.is_file():
                yield ".".join(parts[:depth]), file
                break


def _imports(module: str, file: Path) -> Iterator[str]:
    """Yield the full names of what a module imports, anywhere in it; a name may be that of no module."""
    if file.suffix != ".py":
        return
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_bytes(), file.name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{name}.{alias.name}".lstrip(".") for alias in node.names)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
