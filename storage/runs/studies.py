"""The folders below `studies/`: what a study is, its table, its figures and its curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from schemas.records.study import HeldOutReading, HeldOutReadings, Study
from storage.disk.files import failures_named, make_folder, write_bytes_atomic
from storage.errors import DamagedArtifactError, WorkspaceError
from storage.workspace import Workspace

_STUDY = "study.json"
_READINGS = "held_out_readings.json"


def write_study(workspace: Workspace, study: Study) -> None:
    """Keep a study under its name, so that it can be named without its file."""
    write_study_files(workspace, study.name, {_STUDY: study.model_dump_json(indent=1).encode() + b"\n"})


def read_study(workspace: Workspace, name: str) -> Study | None:
    """Return the study that was kept under a name, None when there is none; DamagedArtifactError for a broken file."""
    try:
        path = workspace.study_folder(name) / _STUDY
        content = path.read_bytes()
    except (WorkspaceError, OSError):
        return None
    try:
        return Study.model_validate_json(content)
    except ValidationError as error:
        raise DamagedArtifactError(f"{path} is no study ({error}); name the study's TOML file instead") from error


def list_studies(workspace: Workspace) -> list[Study]:
    """Return the studies that are kept, by name; DamagedArtifactError for a broken file."""
    names = sorted(path.parent.name for path in workspace.studies.glob(f"*/{_STUDY}"))
    return [study for name in names if (study := read_study(workspace, name)) is not None]


def write_study_files(workspace: Workspace, name: str, contents: Mapping[str, bytes]) -> Path:
    """Write files by their names into a study's folder, each whole or not at all; return the folder.

    WriteFailedError when the folder cannot be written.
    """
    folder = workspace.study_folder(name)
    for file_name, content in contents.items():
        write_bytes_atomic(folder / file_name, content, workspace.root)
    return folder


def open_study_log(workspace: Workspace, name: str, run: str) -> BinaryIO:
    """Open the file that a study's run writes its output to, at its end; WriteFailedError when it cannot be written."""
    path = workspace.study_folder(name) / "logs" / f"{run}.log"
    with failures_named(path):
        make_folder(path.parent)
        return path.open("ab")


def add_held_out_reading(workspace: Workspace, name: str, reading: HeldOutReading) -> None:
    """Keep that a study's held-out questions were read."""
    readings = HeldOutReadings(readings=(*read_held_out_readings(workspace, name), reading))
    write_study_files(workspace, name, {_READINGS: readings.model_dump_json(indent=1).encode() + b"\n"})


def read_held_out_readings(workspace: Workspace, name: str) -> tuple[HeldOutReading, ...]:
    """Return when a study's held-out questions were read; DamagedArtifactError for a broken file."""
    path = workspace.study_folder(name) / _READINGS
    try:
        return HeldOutReadings.model_validate_json(path.read_bytes()).readings
    except FileNotFoundError:
        return ()
    except ValidationError as error:
        raise DamagedArtifactError(f"{path} cannot be read ({error}); put it back from a backup") from error
