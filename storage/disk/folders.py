"""Folders that are complete or absent: filled under a temporary name, a manifest last, then renamed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from pydantic import ValidationError

from schemas.base import Record
from schemas.records.ledger import ArtifactRef
from storage.disk.files import failures_named, make_folder, remove, sha256_file, sync, temporary_name, write_json_atomic
from storage.disk.signals import signals_deferred
from storage.errors import StorageError

M = TypeVar("M", bound=Record)
MANIFEST: Final = "manifest.json"
# A file of the size of Wikipedia's vectors would take minutes to hash at every start: its length must do.
_HASHED_BYTES: Final = 256 * 1024 * 1024


@dataclass
class Building:
    """A folder that is being filled; `folder` is the place that it will take, which may be decided late.

    With `is_needed` off it takes no place and goes: what is there already will do.
    """

    path: Path
    folder: Path
    is_needed: bool = True

    def references(self) -> tuple[ArtifactRef, ...]:
        """Make every file durable and return a reference to each, its path relative to the folder."""
        return tuple(_reference(path) for path in sorted(self.path.iterdir()))

    def write_manifest(self, manifest: Record) -> None:
        """Write what says that the folder is complete."""
        write_json_atomic(self.path / MANIFEST, manifest.model_dump(mode="json"), self.path)


@contextmanager
def build_folder(folder: Path) -> Iterator[Building]:
    """Give a folder to fill that takes the place of `folder` at the end; a reader sees all of it or none.

    What was there is replaced; after an error nothing is left of the new one. Raises WriteFailedError when the
    system refuses.
    """
    with failures_named(folder):
        make_folder(folder.parent)
        building = Building(folder.with_name(temporary_name(folder.name)), folder)
        building.path.mkdir()
        try:
            yield building
            if building.is_needed:
                _put_in_place(building.path, building.folder)
        finally:
            if building.path.exists():
                remove(building.path)


@dataclass(frozen=True)
class FolderKind(Generic[M]):
    """What a sort of folder is called, what to do when it cannot be used, and the error that says so."""

    name: str
    manifest_type: type[M]
    error: type[StorageError]
    make_it: str
    make_again: str

    def read_manifest(self, folder: Path) -> M:
        """Return the manifest; the kind's error when there is none or it is damaged."""
        path = folder / MANIFEST
        try:
            return self.manifest_type.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self.error(f"{folder}: no {self.name} here ({MANIFEST} is missing); {self.make_it}") from error
        except ValidationError as error:
            raise self.error(
                f"{path}: not the manifest of such a folder ({self.name}; {error.error_count()} fields are wrong); "
                f"delete the folder and {self.make_again}"
            ) from error

    def check_file(self, folder: Path, reference: ArtifactRef) -> None:
        """Raise the kind's error when a file is missing or is not the one that was written."""
        path = folder / reference.path
        size_bytes = path.stat().st_size if path.is_file() else -1
        hashed = size_bytes <= _HASHED_BYTES
        if size_bytes != reference.size_bytes or (hashed and sha256_file(path) != reference.sha256):
            found = "is missing" if size_bytes < 0 else f"has {size_bytes} bytes"
            raise self.error(
                f"{path}: {found} and is not the file that was written ({reference.size_bytes} bytes, sha256 "
                f"{reference.sha256[:16]}); delete the folder and {self.make_again}"
            )

    def unreadable(self, folder: Path, error: Exception) -> StorageError:
        """Return the error for files that are as they were written and still cannot be opened."""
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return self.error(f"{folder}: its files cannot be read ({reason}); delete the folder and {self.make_again}")


def _reference(path: Path) -> ArtifactRef:
    sync(path)
    return ArtifactRef(path=path.name, sha256=sha256_file(path), size_bytes=path.stat().st_size)


@signals_deferred()
def _put_in_place(building: Path, folder: Path) -> None:
    former = folder.with_name(temporary_name(folder.name))
    sync(building)
    if folder.exists():
        folder.rename(former)
    building.rename(folder)
    sync(folder.parent)
    if former.exists():
        remove(former)
