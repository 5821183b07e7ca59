"""Folders that are complete or absent: a manifest of every file's sha256, written last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from pydantic import Field, ValidationError

from schemas.base import Record
from schemas.records.ledger import ArtifactRef
from storage.disk.files import is_temporary, sha256_file, sync
from storage.disk.folders import MANIFEST, build_folder
from storage.errors import DamagedArtifactError

_HASHED_AT_ONCE: Final = 8


class ManifestEntry(Record):
    """One file of a folder."""

    path: str = Field(description="Relative to the folder, with forward slashes.")
    sha256: str
    size_bytes: int = Field(ge=0)


class Manifest(Record):
    """Every file of a folder, ordered by path."""

    format: int = Field(default=1, description="Version of this file's layout.")
    files: tuple[ManifestEntry, ...]


def write_folder_atomic(folder: Path, fill: Callable[[Path], Mapping[str, str] | None], root: Path) -> ArtifactRef:
    """Have `fill` write into a temporary folder beside `folder`, then put it in place durably.

    A folder that is there already and verifies with the same content stays; any other one is replaced: a crash
    in between leaves it absent, never mixed. `fill` may return the sha256 of files that it hashed while it wrote
    them, by path relative to the folder: they are not read again. Returns a reference to the manifest, which holds
    every hash. Raises WriteFailedError when the system refuses.
    """
    _remove_leftovers(folder)
    with build_folder(folder) as building:
        manifest = _describe(building.path, fill(building.path) or {})
        building.write_manifest(manifest)
        for path in [*_files(building.path), *_folders(building.path)]:
            sync(path)
        building.is_needed = not _holds(folder, manifest)
    path = folder / MANIFEST
    return ArtifactRef(path=path.relative_to(root).as_posix(), sha256=sha256_file(path), size_bytes=path.stat().st_size)


def verify_folder(folder: Path) -> Manifest:
    """Return the folder's manifest when every file is there, unaltered, and none is beside them.

    Raises DamagedArtifactError that names the first file that differs.
    """
    manifest = _read_manifest(folder / MANIFEST)
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:  # Hashing lets go of Python's lock.
        list(pool.map(lambda entry: verify_file(folder / entry.path, entry.sha256, entry.size_bytes), manifest.files))
    listed = {entry.path for entry in manifest.files} | {MANIFEST}
    unlisted = [path for path in _files(folder) if path.relative_to(folder).as_posix() not in listed]
    if unlisted:
        raise DamagedArtifactError(f"{unlisted[0]} is not in {MANIFEST} beside it; remove it, or the whole folder")
    return manifest


def verify_file(path: Path, sha256: str, size_bytes: int) -> None:
    """Raise DamagedArtifactError, naming the file, when it is missing or its bytes are not the hashed ones."""
    repair = "run the stage that wrote it again (resume does)"
    try:
        size = path.stat().st_size
        found = sha256_file(path) if size == size_bytes else ""
    except OSError as error:
        raise DamagedArtifactError(f"{path} cannot be read ({error.strerror or error}); {repair}") from error
    if size != size_bytes:
        raise DamagedArtifactError(f"{path} is damaged: it has {size} bytes, expected {size_bytes}; {repair}")
    if found != sha256:
        raise DamagedArtifactError(f"{path} is damaged: its sha256 is {found}, expected {sha256}; {repair}")


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DamagedArtifactError(
            f"{path} cannot be read ({error.strerror or error}): the folder is incomplete; write it again"
        ) from error
    except (ValueError, ValidationError) as error:
        raise DamagedArtifactError(f"{path} is no manifest ({error}); write the folder again") from error


def _describe(folder: Path, known: Mapping[str, str]) -> Manifest:
    paths = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    entries = [
        ManifestEntry(path=name, sha256=known.get(name) or sha256_file(path), size_bytes=path.stat().st_size)
        for name, path in sorted(paths.items())
    ]
    return Manifest(files=tuple(entries))


def _holds(folder: Path, manifest: Manifest) -> bool:
    try:
        return verify_folder(folder) == manifest
    except DamagedArtifactError:
        return False


def _remove_leftovers(folder: Path) -> None:
    """Remove what interrupted writes of this folder left; only one process at a time may write a folder."""
    for path in folder.parent.glob(f".{folder.name}.*"):
        if is_temporary(path):
            shutil.rmtree(path)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


def _folders(folder: Path) -> list[Path]:
    return [folder, *(path for path in folder.rglob("*") if path.is_dir())]
