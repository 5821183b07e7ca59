"""The workspace: one folder, and the one place that knows where things lie in it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from schemas.commands import command
from schemas.errors import UserError
from schemas.names import NAME_RULE, is_name
from schemas.paths import local_path
from schemas.records.ledger import KNOWN_STAGES, StageKey
from storage.disk.files import describe_failure, make_folder, write_json_atomic
from storage.errors import WorkspaceError

RUN_FILE = "run.json"
STAGE_FILE = "stage.json"
SET_FILE = "set.json"
LAYOUT = 2
"""The form of the files below the root; layout 1 had no file that says so."""

_LAYOUT_FILE = "layout.json"


def validate_run_name(run: str) -> str:
    """Return `run` when it may become part of a path, else raise WorkspaceError."""
    if not is_name(run):
        raise WorkspaceError(f"run name {run[:100]!r} cannot be used: {NAME_RULE}; choose another with --run")
    return run


@dataclass(frozen=True)
class Workspace:
    """Paths below one root; make it with `Workspace.open`."""

    root: Path

    @classmethod
    def open(cls, root: str | Path) -> Workspace:
        """Create the folder where it is missing and prove that it can be written.

        Raises WorkspaceError when a file is in the way or the folder cannot be made or written.
        """
        path = local_path(root).resolve()
        try:
            make_folder(path)
            with tempfile.TemporaryFile(dir=path) as probe:
                probe.write(b"writable")
        except OSError as error:
            raise WorkspaceError(
                f"workspace {path} cannot be written ({describe_failure(error, path)}; or name another folder with "
                "--workspace or SDSEARCH_HOME"
            ) from error
        workspace = cls(path)
        workspace.check_layout()
        return workspace

    def check_layout(self) -> None:
        """Raise WorkspaceError for files of another layout than this program's: it says how they are brought to it."""
        layout = self.layout
        if layout is None or layout == LAYOUT:
            return
        way_out = f"bring it up to date with: {command('db', 'migrate', workspace=self.root)}"
        if layout > LAYOUT:
            way_out = "use the program that made it, or name another folder with --workspace or SDSEARCH_HOME"
        raise WorkspaceError(
            f"workspace {self.root} has files of layout {layout}, this program writes layout {LAYOUT}; {way_out}"
        )

    @property
    def layout(self) -> int | None:
        """The layout of the files here, None where there are none; WorkspaceError for a file that does not say it."""
        path = self.root / _LAYOUT_FILE
        if not path.exists():
            return 1 if self.run_files() or any(self.set_files()) else None
        try:
            return int(json.loads(path.read_bytes())["layout"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise WorkspaceError(
                f"{path} does not say of which layout the workspace is ({error}); bring it up to date with: "
                f"{command('db', 'migrate', workspace=self.root)}"
            ) from error

    def claim(self) -> None:
        """Say that the files here are of this program's layout; called before the first of them is written."""
        if not (self.root / _LAYOUT_FILE).exists():
            write_json_atomic(self.root / _LAYOUT_FILE, {"layout": LAYOUT}, self.root)

    @property
    def database(self) -> Path:
        return self.root / "sdsearch.duckdb"

    @property
    def indexes(self) -> Path:
        return self.root / "indexes"

    @property
    def corpora(self) -> Path:
        return self.root / "corpora"

    @property
    def embeddings(self) -> Path:
        return self.root / "embeddings"

    @property
    def hit_cache(self) -> Path:
        """The file of what searches found."""
        return self.root / "cache" / "hits.sqlite"

    @property
    def verdict_cache(self) -> Path:
        """The file of what judges said of answers."""
        return self.root / "cache" / "verdicts.sqlite"

    @property
    def hashes(self) -> Path:
        """The file of what large files of others were when they were last read."""
        return self.root / "cache" / "hashes.json"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    def run_folder(self, run: str) -> Path:
        """The folder of a run's artifacts."""
        return self.root / "artifacts" / f"run={validate_run_name(run)}"

    def stage_folder(self, key: StageKey) -> Path:
        """The folder of a stage's files."""
        return self.run_folder(key.run) / f"iteration={key.iteration:05d}" / f"stage={key.stage}"

    def run_files(self) -> list[Path]:
        """The files that stand for the runs of this workspace, by name."""
        return sorted((self.root / "artifacts").glob(f"run=*/{RUN_FILE}"))

    def set_files(self) -> list[Path]:
        """The files that stand for the data sets that were prepared here, by name."""
        return sorted(self.questions.glob(f"dataset=*/split=*/{SET_FILE}"))

    def stage_keys(self, run: str) -> Iterator[StageKey]:
        """Yield the stages of a run that were ever begun: by iteration, then in the order of the stages."""
        for folder in sorted(self.run_folder(run).glob("iteration=*")):
            number = folder.name.removeprefix("iteration=")
            for stage in KNOWN_STAGES if number.isdecimal() else ():
                if (folder / f"stage={stage}" / STAGE_FILE).exists():
                    yield StageKey(run=run, iteration=int(number), stage=stage)

    def checkpoints(self, run: str) -> Path:
        """The folder of a run's checkpoints."""
        return self.root / "checkpoints" / f"run={validate_run_name(run)}"

    def checkpoint(self, run: str, version: int) -> Path:
        """The folder of one version of a run's policy."""
        return self.checkpoints(run) / f"version={version:05d}"

    def screen_folder(self, name: str) -> Path:
        """The folder of a screening's files."""
        return self.root / "screens" / validate_run_name(name)

    def warmup_folder(self, name: str) -> Path:
        """The folder of a warm-up's record, checkpoints and policy."""
        return self.root / "warmups" / validate_run_name(name)

    @property
    def studies(self) -> Path:
        """The folder of the studies."""
        return self.root / "studies"

    def study_folder(self, study: str) -> Path:
        """The folder of a study's table, curves and figures."""
        return self.studies / validate_run_name(study)

    @property
    def questions(self) -> Path:
        """The folder of the data sets that were prepared."""
        return self.root / "questions"

    @property
    def answerability(self) -> Path:
        """The folder of what can be answered from what is searched."""
        return self.root / "answerability"

    @property
    def questions_lock(self) -> Path:
        """The file whose lock says that a process writes a prepared data set."""
        return self.locks / "questions.lock"

    def refused(self, run: str) -> Path:
        """The folder of a run's optimiser steps that were refused."""
        return self.root / "refused" / f"run={validate_run_name(run)}"

    def lock(self, run: str) -> Path:
        """The file whose lock says that a process works on the run."""
        return self.locks / f"run={validate_run_name(run)}.lock"

    @property
    def tracking(self) -> Path:
        """The folder of what trackers write that have no folder of their own."""
        return self.root / "tracking"

    @property
    def index_lock(self) -> Path:
        """The file whose lock says that a process builds an index."""
        return self.locks / "indexes.lock"

    @property
    def corpus_lock(self) -> Path:
        """The file whose lock says that a process imports a corpus."""
        return self.locks / "corpora.lock"

    def open_log(self, name: str) -> IO[bytes]:
        """Open `logs/NAME.log` to append to: what a started program says."""
        path = self.log(name)
        make_folder(path.parent)
        return path.open("ab")

    def log(self, name: str) -> Path:
        """The file that a started program's output goes to."""
        return self.root / "logs" / f"{name}.log"

    def relative(self, path: Path) -> str:
        """Return `path` as references hold it: relative to the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def resolve(self, relative: str) -> Path:
        """Return the absolute path of a reference's path; WorkspaceError when it leads out of the workspace."""
        parts = PurePosixPath(relative)
        if parts.is_absolute() or ".." in parts.parts or not parts.parts:
            raise WorkspaceError(
                f"path {relative!r} leads out of the workspace {self.root}; a reference's path is relative to it"
            )
        return self.root / parts


def link_shared_folders(source: Workspace, trial: Workspace) -> None:
    """Make the corpora, vectors and indexes of `source`, those that are there, readable in `trial`, which is new."""
    for folder in (source.corpora, source.embeddings, source.indexes):
        target = trial.root / folder.name
        make_folder(target)
        for item in folder.iterdir() if folder.is_dir() else ():
            (target / item.name).symlink_to(item.resolve(), target_is_directory=item.is_dir())


def open_existing(folder: Path, *, needs_database: bool = True) -> Workspace:
    """Return a workspace that holds runs or questions; UserError when there is none. Nothing is written."""
    workspace = Workspace(local_path(folder).resolve())
    workspace.check_layout()
    if workspace.database.is_file():
        return workspace
    if not workspace.run_files() and not workspace.questions.is_dir():
        raise UserError(
            f"no database in the workspace {workspace.root}; name another with --workspace or SDSEARCH_HOME, or make "
            f"one with: {command('train', 'quickstart', workspace=workspace.root)}"
        )
    if needs_database:
        raise UserError(
            f"{workspace.database} is missing; make it again from the files with: "
            f"{command('db', 'rebuild', workspace=workspace.root)}"
        )
    return workspace
