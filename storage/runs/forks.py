"""A stage's files given to another run: links where the file system has them, so that a fork costs no space."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from schemas.records.ledger import ArtifactRef, StageKey, StageRecord
from storage.disk.files import write_atomic
from storage.disk.folders import MANIFEST
from storage.disk.manifest import verify_folder, write_folder_atomic
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger, finish
from storage.workspace import Workspace


def share_stage(ledger: Ledger, artifacts: ArtifactStore, record: StageRecord, run: str) -> StageRecord:
    """Make a done stage of one run a done stage of another, with files of its own name; return its record there.

    The files are never written again in place, so that both runs may remove and replace theirs as they like. The
    caller holds both runs' locks. Raises DamagedArtifactError when a file is not what it was.
    """
    artifacts.verify_outputs(record)
    key = StageKey(run=run, iteration=record.iteration, stage=record.stage)
    begun = ledger.begin(key, record.input_hash, record.seed, adopted_from=record.run, code_hash=record.code_hash)
    outputs = [_share(artifacts.workspace, output, record.run, run) for output in record.outputs]
    done = finish(begun, outputs).model_copy(update={"num_rows": record.num_rows})
    assert done.output_hash == record.output_hash, "the same names and bytes give the same hash"
    ledger.commit(done)
    return done


def _share(workspace: Workspace, output: ArtifactRef, source: str, run: str) -> ArtifactRef:
    parts = [f"run={run}" if part == f"run={source}" else part for part in Path(output.path).parts]
    from_path, to_path = workspace.resolve(output.path), workspace.resolve(Path(*parts).as_posix())
    if from_path.name == MANIFEST:
        return write_folder_atomic(
            to_path.parent, lambda folder: _link_folder(from_path.parent, folder), workspace.root
        )
    return write_atomic(to_path, lambda path: _link(from_path, path), workspace.root)


def _link_folder(source: Path, folder: Path) -> None:
    for entry in verify_folder(source).files:
        target = folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(source / entry.path, target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # Not every file system has links.
        shutil.copyfile(source, target)
