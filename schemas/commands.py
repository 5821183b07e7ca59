"""Commands and settings as a person types them into a shell: written so that they are read back as they were meant."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.errors import UserError


def command(*words: str, overrides: Sequence[str] = (), workspace: Path | None = None) -> str:
    """Return `sdsearch` and its words, quoted for the shell; then `--set` of each override, then the workspace."""
    options = [word for override in overrides for word in ("--set", override)]
    options += ["--workspace", str(workspace)] if workspace else []
    return " ".join(quoted(word) for word in ("sdsearch", *words, *options))


def set_option(name: str, value: Any) -> str:
    """Return `--set name=value`, quoted for the shell."""
    return f"--set {quoted(f'{name}={value_text(value)}')}"


def path_argument(path: Path | str) -> str:
    """Return a path that no command takes for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def quoted(word: str) -> str:
    """Return a word as a shell takes it; characters that a terminal does not show are written out (bash, zsh, ksh)."""
    if word.isprintable():
        return shlex.quote(word)
    letters = (c if c.isprintable() else _as_bytes(c) for c in word.replace("\\", "\\\\"))
    return "$'" + "".join(letters).replace("'", "\\'") + "'"


def _as_bytes(character: str) -> str:
    """Return the escapes of a character's bytes, which a shell reads in every locale, also where it is half of one."""
    how = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", how))


def value_text(value: Any) -> str:
    """Return a value as `parse_value` reads it: TOML, but a text as a bare word where that is read as the same text."""
    is_bare = isinstance(value, str) and value == value.strip() and _reads_as_itself(value)
    return value if is_bare else as_toml(value)


def parse_value(text: str, where: str) -> Any:
    """Return what TOML makes of the text; the text itself when it is a bare word. UserError for half a value."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text[:1] in ("[", "{", '"', "'"):
            raise UserError(f"{where}: the value is not TOML: {error}; quote it for the shell") from error
        return text
    return parsed["value"] if len(parsed) == 1 else text


def as_toml(value: Any) -> str:
    """Return a text, number, truth value, or an array or inline table of them, as TOML writes it."""
    if isinstance(value, str):  # JSON's escapes are TOML's; the one control character that JSON leaves is not allowed.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{as_toml(str(key))} = {as_toml(item)}' for key, item in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _reads_as_itself(text: str) -> bool:
    try:
        return bool(text) and parse_value(text, "") == text
    except UserError:
        return False
