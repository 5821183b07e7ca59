"""JSON schemas of the settings and of the records that are stored or printed, and the settings as a reference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console

from flows.console.errors import UserError
from flows.console.terminal import print_line
from schemas.base import Record
from schemas.paths import local_path
from schemas.plugins import PLUGIN
from schemas.records.answerability import Answerability, QuestionAnswerability
from schemas.records.asking import BlockStep, EndStep, NoticeStep, PassagesStep, WrittenStep
from schemas.records.conversation import Conversation
from schemas.records.evaluation import EvaluationAnswer, EvaluationConditions, EvaluationReport
from schemas.records.hindsight import HindsightBlock
from schemas.records.judging import AnswerVerdict, JudgedEvaluation
from schemas.records.ledger import ArtifactRef, RunRecord, StageHistory, StageRecord
from schemas.records.passage import Passage
from schemas.records.plan import Plan
from schemas.records.question import Question
from schemas.records.question_set import PreparedSet, QuestionSet
from schemas.records.retry import RetriedGroup
from schemas.records.rollout import Group, Rollout
from schemas.records.run_inputs import RunInputs
from schemas.records.score import Score
from schemas.records.screen import DrawnF1, ScreenedTurn, ScreenResults, TurnCredit
from schemas.records.study import HeldOutReadings, Study, StudyResults
from schemas.records.teacher import QueryCredit, TeacherTargets
from schemas.records.tracking import RunTracking
from schemas.records.update import RefusedStep, UpdateReport
from schemas.records.warmup import WarmupRecord
from schemas.settings.root import Settings
from schemas.settings.rules import NOTED, REFUSED
from schemas.settings.tree import allowed_values, kind_of, sections_of
from storage.disk.files import write_json_atomic

RECORDS: Final[tuple[type[Record], ...]] = (
    Answerability,
    AnswerVerdict,
    ArtifactRef,
    BlockStep,
    Conversation,
    DrawnF1,
    EndStep,
    EvaluationAnswer,
    EvaluationConditions,
    EvaluationReport,
    Group,
    HeldOutReadings,
    HindsightBlock,
    JudgedEvaluation,
    RetriedGroup,
    NoticeStep,
    Passage,
    PassagesStep,
    Plan,
    PreparedSet,
    QueryCredit,
    Question,
    QuestionAnswerability,
    QuestionSet,
    RefusedStep,
    Rollout,
    RunInputs,
    RunRecord,
    RunTracking,
    Score,
    ScreenResults,
    WarmupRecord,
    ScreenedTurn,
    Settings,
    StageHistory,
    StageRecord,
    Study,
    StudyResults,
    TeacherTargets,
    TurnCredit,
    UpdateReport,
    WrittenStep,
)


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON schema of each record by its name."""
    return {record.__name__: record.model_json_schema() for record in RECORDS}


def print_schemas() -> None:
    """Print one JSON object: record name to schema."""
    print(json.dumps(schemas(), indent=2, sort_keys=True))


def write_schemas(folder: Path, console: Console) -> None:
    """Write `NAME.schema.json` for each record; UserError when the folder cannot be written."""
    root = local_path(folder).resolve()
    try:
        for name, content in schemas().items():
            write_json_atomic(root / f"{name}.schema.json", content, root)
    except OSError as error:
        raise UserError(
            f"{root} cannot be written ({error.strerror or error}); name another folder with --out"
        ) from error
    print_line(console, f"{len(RECORDS)} schemas in {root}")


_HEADING: Final = """# Settings

Made by `sdsearch schema --settings`; do not edit. A settings file is TOML: one table a section, `[update]`, then
`learning_rate = 1e-6`. On the command line a setting is changed with `--set update.learning_rate=1e-6`. Unknown names,
wrong types and values out of range are refused with the nearest name or the values that are allowed.

*paper* marks what arXiv 2605.18299 states, *relative* what its closest public relative (AutoRefine, on Search-R1) uses
where the paper is silent, *ours* what is chosen here; the rest is technical.
"""


def settings_reference() -> str:
    """Return the settings as Markdown: a table a section, and what does not go together."""
    # Kinds may share a section below them, such as the encoders: it is told once.
    parts = [_HEADING, *dict.fromkeys(_sections(Settings, ""))]
    parts.append("## What does not go together\n\nRefused when settings are read:\n")
    parts.append("".join(f"- {rule.sentence}.\n" for rule in REFUSED))
    parts.append("Said when a run starts:\n")
    parts.append("".join(f"- {rule.sentence}.\n" for rule in NOTED))
    return "\n".join(parts)


def _sections(section: type[BaseModel], name: str) -> Iterator[str]:
    """Yield a section's table, then those of the sections below it."""
    values = {key: field for key, field in section.model_fields.items() if not sections_of(field.annotation)}
    title = f"## `[{name}]`" if name else "## The run"
    kind = kind_of(section)
    chosen = "" if kind is None else " (where `kind` is a plugin)" if kind == PLUGIN else f' (where `kind = "{kind}"`)'
    head = f"{title}{chosen}\n\n{_one_line(section.__doc__)}\n\n"
    rows = "".join(_row(key, field) for key, field in values.items())
    yield f"{head}| setting | allowed | default | meaning |\n|---|---|---|---|\n{rows}"
    for key, field in section.model_fields.items():
        for below in sections_of(field.annotation):
            yield from _sections(below, f"{name}.{key}".lstrip("."))


def _row(name: str, field: FieldInfo) -> str:
    default = "needed" if field.is_required() else f"`{_toml(field.default)}`"
    cells = (f"`{name}`", allowed_values(field), default, field.description or "")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _toml(value: Any) -> str:
    """Return a default as a settings file writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return json.dumps(value)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
