"""The folders below `warmups/`: a warm-up's record, its newest checkpoint, and the policy that it made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import ValidationError

from schemas.records.warmup import WarmupRecord
from storage.disk.files import write_bytes_atomic
from storage.disk.manifest import verify_folder, write_folder_atomic
from storage.errors import DamagedArtifactError
from storage.runs.checkpoints import CheckpointStore
from storage.workspace import Workspace


class WarmupStore:
    """The files of one warm-up; the caller holds its lock."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self._root = workspace.root
        self._name = name
        self.folder = workspace.warmup_folder(name)
        self.policy = self.folder / "policy"
        self.checkpoints = CheckpointStore(Workspace(self.folder))
        """Version n is the policy after step n, with its optimiser."""

    def find(self) -> WarmupRecord | None:
        """Return the record, None where there is none; DamagedArtifactError where it cannot be read."""
        path = self.folder / "warmup.json"
        if not path.exists():
            return None
        try:
            return WarmupRecord.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise DamagedArtifactError(f"{path} cannot be read ({error}); use another --name") from error

    def write(self, record: WarmupRecord) -> None:
        """Write the record, whole or not at all."""
        content = record.model_dump_json(indent=1).encode() + b"\n"
        write_bytes_atomic(self.folder / "warmup.json", content, self._root)

    def write_policy(self, save: Callable[[Path], Mapping[str, str] | None]) -> str:
        """Have `save` fill the policy's folder and return its manifest's sha256; it is complete or absent."""
        return write_folder_atomic(self.policy, save, self._root).sha256

    def verify_policy(self) -> None:
        """Raise DamagedArtifactError where the policy's folder is missing or altered."""
        verify_folder(self.policy)

    def drop_checkpoints(self) -> None:
        """Remove all checkpoints: the policy is written."""
        self.checkpoints.prune(self._name, keep=())

    def keep_newest(self, step: int) -> None:
        """Remove the checkpoints before a step's."""
        self.checkpoints.prune(self._name, keep=(step,))
