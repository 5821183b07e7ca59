"""Hashes of files that others own: a large one is read once, and again only when it looks changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from storage.disk.files import locked, sha256_file, write_json_atomic
from storage.workspace import Workspace

# A smaller file takes a twentieth of a second: it is always read.
_REMEMBERED_BYTES: Final = 64 * 1024 * 1024


def hash_of(workspace: Workspace, path: Path) -> str:
    """Return the sha256 (hex) of a file; raises OSError when it cannot be read.

    A large one is known by its length and time of change: a model of some GB takes longer than a resume should.
    """
    status = path.stat()
    if status.st_size < _REMEMBERED_BYTES:
        return sha256_file(path)
    place, mark = str(path.resolve()), [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    known = _read(workspace).get(place)
    if known is not None and known["mark"] == mark:
        return str(known["sha256"])
    sha256 = sha256_file(path)
    with locked(workspace.locks / "hashes.lock"):
        write_json_atomic(
            workspace.hashes, _read(workspace) | {place: {"mark": mark, "sha256": sha256}}, workspace.root
        )
    return sha256


def _read(workspace: Workspace) -> dict[str, dict[str, object]]:
    """Return what is remembered; a file that cannot be read is nothing remembered."""
    try:
        known = json.loads(workspace.hashes.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    items = known.items() if isinstance(known, dict) else ()
    return {place: item for place, item in items if isinstance(item, dict) and {"mark", "sha256"} <= item.keys()}
