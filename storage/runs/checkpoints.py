"""Versions of a run's policy with the state of its optimiser; each is complete or absent."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from schemas.records.ledger import ArtifactRef
from storage.disk.files import failures_named, temporary_name
from storage.disk.manifest import verify_folder, write_folder_atomic
from storage.disk.spread import is_stored
from storage.errors import DamagedArtifactError
from storage.workspace import Workspace

# In a folder of its own: engines that load a checkpoint read every safetensors file beside the weights.
OPTIMISER_FILE: Final = "optimiser/state.safetensors"
_VERSION_FOLDER = re.compile(r"version=(\d+)")


class CheckpointStore:
    """Writes, verifies and lists the folders `checkpoints/run=…/version=…`."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def write(self, run: str, version: int, save: Callable[[Path], Mapping[str, str] | None]) -> ArtifactRef:
        """Have `save` fill a folder with the policy's files and put it in place as this version.

        It may return the sha256 of files that it hashed while it wrote them, as `write_folder_atomic` says.

        Returns a reference to the manifest, whose hash covers every file; an earlier folder of the version is
        replaced when it differs. The caller holds the run's lock.
        """
        return write_folder_atomic(self.path(run, version), save, self.workspace.root)

    def verify(self, run: str, version: int) -> Path:
        """Return the version's folder when it is complete; DamagedArtifactError names what is missing or altered."""
        folder = self.path(run, version)
        if not folder.is_dir():
            held = ", ".join(str(known) for known in self.versions(run)) or "none"
            raise DamagedArtifactError(f"run '{run}' has no checkpoint of version {version} (it has: {held})")
        verify_folder(folder)
        return folder

    def path(self, run: str, version: int) -> Path:
        """Return the folder of a version, whether it is there or not."""
        return self.workspace.checkpoint(run, version)

    def has_optimiser(self, run: str, version: int) -> bool:
        """Return whether a version has the state of its optimiser, from which the next update can be taken."""
        return is_stored(self.path(run, version) / OPTIMISER_FILE)

    def versions(self, run: str) -> list[int]:
        """Return the versions that are there, ascending."""
        folder = self.workspace.checkpoints(run)
        matches = [_VERSION_FOLDER.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(match.group(1)) for match in matches if match)

    def prune(self, run: str, keep: Collection[int]) -> list[int]:
        """Remove the versions that are not in `keep` and return them; the caller holds the run's lock."""
        gone = [version for version in self.versions(run) if version not in keep]
        for version in gone:
            # A version that is half removed must not look like a damaged one.
            path = self.path(run, version)
            temporary = path.with_name(temporary_name(path.name))
            with failures_named(path):
                path.rename(temporary)
                shutil.rmtree(temporary)
        return gone
