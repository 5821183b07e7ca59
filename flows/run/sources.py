"""The sources of the code that does a stage: a hash of every module of the program that its own modules lead to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

import flows
from storage.disk.files import sha256_file

_ROOT: Final = Path(flows.__file__).parent.parent
# The method, and the records that it computes with. Settings are compared by their values, storage by what it stores.
_FOLLOWED: Final = ("sdsearch.", "schemas.records.")
_SHOWN: Final = 3
_IMPORT: Final = re.compile(r"^[ \t]*from ([\w.]+) import ([^\n]*)|^[ \t]*import ([\w.]+)", re.MULTILINE)


def sources_of(modules: Sequence[str]) -> Mapping[str, str]:
    """Return the sha256 of each source that decides what these modules of the program do, by its path in the program.

    They are the modules themselves, and what they import of the method, one of another, at any depth. Imports are read
    off the text, so that nothing is loaded.
    """
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        source = _source(module)
        if source is not None and source[0] not in found:
            path, sha256, imported = source
            found[path] = sha256
            waiting += imported
    return dict(sorted(found.items()))


def describe_changes(former: Mapping[str, str] | None, now: Mapping[str, str]) -> str:
    """Return in words which sources differ from those that did a stage before; None: they were not kept."""
    if former is None:
        return "another version of the program did it"
    changed = sorted(path for path in {*former, *now} if former.get(path) != now.get(path))
    shown = ", ".join(changed[:_SHOWN]) + (f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else "")
    return f"{shown} changed since"


@cache
def _source(module: str) -> tuple[str, str, tuple[str, ...]] | None:
    """Return a module's path, its hash and the followed modules it imports; None for what is no module of ours."""
    file = _ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if not file.is_file():
        file = file.with_suffix("") / "__init__.py"
        if not file.is_file():
            return None
    imported: dict[str, None] = {}
    for package, names, whole in _IMPORT.findall(file.read_text(encoding="utf-8")):
        imported |= dict.fromkeys([package or whole])
        # `from package import module`: names that are no modules lead nowhere.
        imported |= dict.fromkeys(f"{package}.{name}" for name in re.findall(r"\w+", names) if package)
    followed = tuple(name for name in imported if f"{name}.".startswith(_FOLLOWED))
    return file.relative_to(_ROOT).as_posix(), sha256_file(file), followed
