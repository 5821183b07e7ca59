"""What a run was begun with, in a file beside its record."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from schemas.records.run_inputs import RunInputs
from storage.disk.files import write_json_atomic
from storage.errors import DamagedArtifactError
from storage.workspace import Workspace

_FILE = "inputs.json"


def read_run_inputs(workspace: Workspace, run: str) -> RunInputs | None:
    """Return what a run was begun with, None where it was not kept; DamagedArtifactError for a file that is none."""
    path = _path(workspace, run)
    try:
        return RunInputs.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DamagedArtifactError(
            f"{path} is damaged ({reason}); remove it, and the run continues with its "
            "prompts and inputs as they are now"
        ) from error


def write_run_inputs(workspace: Workspace, run: str, inputs: RunInputs) -> None:
    """Keep what a run was begun with; the caller holds the run's lock."""
    write_json_atomic(_path(workspace, run), inputs.model_dump(mode="json"), workspace.root)


def _path(workspace: Workspace, run: str) -> Path:
    return workspace.run_folder(run) / _FILE
