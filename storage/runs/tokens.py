"""Tokens that show whether machines see the same workspace: what one writes, the others read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.disk.files import make_folder, write_bytes_atomic


@contextmanager
def token_in(root: Path, token: str) -> Iterator[None]:
    """Have a token in the folder of a workspace, which need not be there yet, for the length of the context.

    WriteFailedError when it cannot be written.
    """
    path = _path(root, token)
    make_folder(path.parent)
    write_bytes_atomic(path, token.encode(), root)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # The last one to leave removes the folder.
            path.parent.rmdir()


def is_token_in(root: Path, token: str) -> bool:
    """Return whether a token, whoever wrote it, is in the folder of a workspace."""
    try:
        return _path(root, token).read_text(encoding="utf-8") == token
    except OSError:
        return False


def _path(root: Path, token: str) -> Path:
    return root / "meeting" / f"machine-{token}"
