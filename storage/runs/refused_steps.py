"""Optimiser steps that were refused, kept for the person who looks for the cause."""

from __future__ import annotations

import json
from pathlib import Path

from schemas.records.ledger import StageKey
from schemas.records.update import RefusedStep
from storage.disk.files import write_json_atomic
from storage.workspace import Workspace


def write_refused_step(workspace: Workspace, key: StageKey, refused: RefusedStep) -> Path:
    """Write the step and its run as JSON and return the file; numbers that are not finite are strings such as "NaN"."""
    path = workspace.refused(key.run) / f"iteration={key.iteration:05d}-step={refused.step:06d}.json"
    write_json_atomic(path, {"run": key.run, **json.loads(refused.model_dump_json())}, workspace.root)
    return path
