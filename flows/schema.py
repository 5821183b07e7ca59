"""JSON schemas of the settings and of every record that is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from flows.errors import UserError
from flows.terminal import print_line
from schemas.base import Record
from schemas.config import Settings
from schemas.evaluation import EvaluationAnswer, EvaluationReport
from schemas.hindsight import HindsightBlock
from schemas.ledger import ArtifactRef, RunRecord, StageRecord
from schemas.passage import Passage
from schemas.question import Question
from schemas.rollout import Group, Rollout
from schemas.score import Score
from schemas.teacher import QueryCredit, TeacherTargets
from schemas.update import UpdateReport
from storage.files import write_json_atomic

RECORDS: Final[tuple[type[Record], ...]] = (
    ArtifactRef,
    EvaluationAnswer,
    EvaluationReport,
    Group,
    HindsightBlock,
    Passage,
    QueryCredit,
    Question,
    Rollout,
    RunRecord,
    Score,
    Settings,
    StageRecord,
    TeacherTargets,
    UpdateReport,
)


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON schema of each record by its name."""
    return {record.__name__: record.model_json_schema() for record in RECORDS}


def print_schemas() -> None:
    """Print one JSON object: record name to schema."""
    print(json.dumps(schemas(), indent=2, sort_keys=True))


def write_schemas(folder: Path, console: Console) -> None:
    """Write `NAME.schema.json` for each record; UserError when the folder cannot be written."""
    root = folder.expanduser().resolve()
    try:
        for name, content in schemas().items():
            write_json_atomic(root / f"{name}.schema.json", content, root)
    except OSError as error:
        raise UserError(
            f"{root} cannot be written ({error.strerror or error}); name another folder with --out"
        ) from error
    print_line(console, f"{len(RECORDS)} schemas in {root}")
