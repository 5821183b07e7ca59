"""The sources that did the stages of a run, in a file beside its record: it says later what has changed since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from storage.disk.files import write_json_atomic
from storage.workspace import Workspace

_FILE = "sources.json"
_KEPT = TypeAdapter(dict[str, dict[str, str]])


def keep_sources(workspace: Workspace, run: str, code_hash: str, sources: Mapping[str, str]) -> None:
    """Keep the hash of each source under the hash of them all; the caller holds the run's lock."""
    kept = _read(workspace, run)
    if code_hash not in kept:
        write_json_atomic(_path(workspace, run), {**kept, code_hash: dict(sources)}, workspace.root)


def kept_sources(workspace: Workspace, run: str, code_hash: str) -> dict[str, str] | None:
    """Return the hash of each source by its path, None where it was not kept."""
    return _read(workspace, run).get(code_hash)


def _read(workspace: Workspace, run: str) -> dict[str, dict[str, str]]:
    """Return what was kept; a damaged file tells nothing, which is what a missing one does."""
    try:
        return _KEPT.validate_json(_path(workspace, run).read_bytes())
    except (OSError, ValidationError):
        return {}


def _path(workspace: Workspace, run: str) -> Path:
    return workspace.run_folder(run) / _FILE
