"""TOML files of a person's, or those that come with the program."""

from __future__ import annotations

import codecs
import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from flows.console.errors import UserError
from schemas.base import nearest_name
from schemas.paths import local_path

SUFFIX = ".toml"


def read_toml(name: str, shipped: Sequence[str], kind: str) -> dict[str, Any]:
    """Return the content of a TOML file: a shipped one's name, or a path. `kind` is what an error calls it.

    Raises UserError for a file that is not there, cannot be read or is no TOML.
    """
    return _parse(_read(name, shipped, kind), name)


def _read(name: str, shipped: Sequence[str], kind: str) -> bytes:
    if name in shipped:
        return (files("flows") / "configs" / f"{name}{SUFFIX}").read_bytes()
    path = local_path(name)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(_not_found(name, shipped, kind)) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character.
        raise UserError(f"{name}: cannot be read ({error}); name a readable TOML file") from error


def _not_found(name: str, shipped: Sequence[str], kind: str) -> str:
    near = nearest_name(Path(name).name.removesuffix(SUFFIX), list(shipped))
    hint = f"did you mean '{near}'? " if near else ""
    return f"no {kind} file '{name}': {hint}give the path of a TOML file or one of {', '.join(shipped)}"


def _parse(content: bytes, name: str) -> dict[str, Any]:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # UTF-32 begins in the same way.
        raise UserError(f"{name}: UTF-16 text; save the file as UTF-8")
    try:
        # Editors put a byte-order mark before the text, and end lines in their own way.
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except RecursionError as error:
        raise UserError(f"{name}: arrays or tables within each other, too deep to be read; correct the file") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name}: not TOML: {error}; correct that line") from error
