"""Paths as a person writes them, in settings and on the command line: the one place that reads `~`."""

from __future__ import annotations

from pathlib import Path


def local_path(text: str | Path) -> Path:
    """Return the path that a person wrote, with the home folder for `~` and `~name`.

    As in a shell, `~name` of nobody on this machine stays as it is. Variables such as `$HOME` are not replaced.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:  # There is no such user, or no home.
        return Path(text)


def folder_or_name(text: str) -> str:
    """Return a folder with its `~` replaced, or the hub name that the text is."""
    return str(local_path(text)) if text.startswith("~") else text
