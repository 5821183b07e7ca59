"""Which runs of trackers a run's figures go to, in a file beside its record."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from schemas.records.tracking import RunTracking
from storage.disk.files import make_folder, write_json_atomic
from storage.workspace import Workspace

_FILE = "tracking.json"
logger = logging.getLogger(__name__)


def read_run_tracking(workspace: Workspace, run: str) -> RunTracking:
    """Return what is known of a run's trackers; nothing, after a warning, where the file is damaged."""
    path = _path(workspace, run)
    try:
        return RunTracking.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return RunTracking()
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        logger.warning("%s is damaged (%s): the run's trackers begin anew", path, reason)
        return RunTracking()


def write_run_tracking(workspace: Workspace, run: str, tracking: RunTracking) -> None:
    """Keep what is known of a run's trackers; the caller holds the run's lock."""
    write_json_atomic(_path(workspace, run), tracking.model_dump(mode="json"), workspace.root)


def make_tracking_folder(workspace: Workspace) -> Path:
    """Make the folder that trackers write to where no other is set, and return it."""
    make_folder(workspace.tracking)
    return workspace.tracking


def _path(workspace: Workspace, run: str) -> Path:
    return workspace.run_folder(run) / _FILE
