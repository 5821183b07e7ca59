"""Paths as a person writes them, in settings and on the command line: the one place that reads `~`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from schemas.errors import UserError

_LONGEST_NAME: Final = 255


def local_path(text: str | Path) -> Path:
    """Return the path that a person wrote, with the home folder for `~` and `~name`.

    As in a shell, `~name` of nobody on this machine stays as it is. Variables such as `$HOME` are not replaced. Raises
    UserError for what no file system can hold.
    """
    if "\0" in str(text) or any(len(os.fsencode(part)) > _LONGEST_NAME for part in str(text).split("/")):
        raise UserError(
            f"{str(text)[:80]!r} can be no path: a name in it is longer than {_LONGEST_NAME} bytes, or holds a NUL; "
            "correct it"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError:  # There is no such user, or no home.
        return Path(text)


def folder_or_name(text: str) -> str:
    """Return a folder with its `~` replaced, or the hub name that the text is."""
    path = local_path(text)
    return str(path) if text.startswith("~") else text
