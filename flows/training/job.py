"""One call to train: what the command line hands on, to the loop directly or through a Prefect flow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from schemas.settings.root import Settings
from storage.storage import Storage
from storage.workspace import Workspace, validate_run_name


@dataclass(frozen=True)
class Job:
    """Which run is trained, and where; a job without settings resumes a run with its stored ones.

    `config` and `overrides` are what the settings were read from, for people to see.
    """

    run: str
    storage: Storage
    settings: Settings | None = None
    config: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def resumes(self) -> bool:
        """Whether the run must be there already."""
        return self.settings is None

    @property
    def num_iterations(self) -> int:
        """Iterations that the run is asked for; RunNotFoundError when a run to resume is not there."""
        return self.settings.iterations if self.settings else self.storage.find_run(self.run).num_iterations


def open_job(
    run: str,
    workspace: Path,
    settings: Settings | None = None,
    config: str = "",
    overrides: tuple[str, ...] = (),
) -> Job:
    """Return the job of a run in a workspace, which is made where it is missing; WorkspaceError when it cannot be."""
    return Job(validate_run_name(run), open_storage(workspace, settings), settings, config, overrides)


def open_storage(workspace: Path, settings: Settings | None = None) -> Storage:
    """Open a workspace; WorkspaceError when it cannot be written."""
    deadline_s = settings.storage.database_deadline_s if settings else 60.0
    return Storage(Workspace.open(workspace), deadline_s)
