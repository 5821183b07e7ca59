"""What a stage's files say as rows of the database: one function, for a run that trains and for a rebuilt index.

Only a stage's committed files and the run's settings are read, so the rows can be made again at any time.
"""

from __future__ import annotations

import json
from typing import Protocol, TypeVar, assert_never

from schemas.base import Record
from schemas.records.evaluation import EvaluationAnswer, EvaluationConditions, EvaluationMode, EvaluationReport
from schemas.records.hindsight import HindsightBlock
from schemas.records.judging import AnswerVerdict, JudgedEvaluation
from schemas.records.ledger import ArtifactRef, StageRecord
from schemas.records.retry import RetriedGroup
from schemas.records.rollout import Group
from schemas.records.score import Score
from schemas.records.teacher import QueryCredit, TeacherTargets
from schemas.records.update import UpdateReport
from schemas.settings.root import HindsightSettings
from storage.database.retry_rows import with_retries
from storage.database.rollout_rows import score_rows
from storage.database.rows import StageRows, evaluation_rows, hindsight_rows, judge_rows, teacher_rows, update_rows
from storage.errors import DamagedArtifactError
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger

R = TypeVar("R", bound=Record)
CONDITIONS = "conditions"
"""The file of what an evaluation was made under; those of earlier versions have none."""
JUDGED, VERDICTS = "judged", "verdicts"
"""The files of the judge stage: the shares, and what was said of each answer."""


class ReadRecords(Protocol):
    """Returns the records of a stage's file, named without extension."""

    def __call__(self, record: StageRecord, name: str, record_type: type[R]) -> list[R]: ...


def rows_of(
    record: StageRecord, sampled: StageRecord | None, hindsight: HindsightSettings, read: ReadRecords
) -> StageRows:
    """Return the rows of a done stage; `sampled` is the iteration's sample stage, which score's rows need too.

    `hindsight` says which rollouts count as CORRECT. DamagedArtifactError when a file cannot be read.
    """
    run, iteration = record.run, record.iteration
    match record.stage:
        case "sample":
            return {}
        case "score":
            if sampled is None:
                raise DamagedArtifactError(f"iteration {iteration} of run '{run}' has no groups; resume samples them")
            groups, scores = read(sampled, "groups", Group), read(record, "scores", Score)
            retried = sampled.retrieval.retried if sampled.retrieval else ()
            rows = score_rows(run, iteration, groups, scores, hindsight.label_metric, hindsight.rho, retried)
            if not has_file(record, "retry_scores"):
                return rows
            of_retries = read(sampled, "retries", RetriedGroup), read(record, "retry_scores", Score)
            return with_retries(rows, run, iteration, *of_retries, hindsight)
        case "hindsight":
            return hindsight_rows(run, iteration, read(record, "blocks", HindsightBlock))
        case "teacher":
            targets, credit = read(record, "targets", TeacherTargets), read(record, "credit", QueryCredit)
            return teacher_rows(run, iteration, targets, credit, file_of(record, "distributions"))
        case "update":
            (report,) = read(record, "update", UpdateReport)
            return update_rows(run, iteration, report)
        case "evaluate":
            reports = read(record, "reports", EvaluationReport)
            indexes = {name: index for index, name in enumerate(dict.fromkeys((r.dataset, r.split) for r in reports))}
            files = [answers_file(report.mode, indexes[report.dataset, report.split]) for report in reports]
            answers = [read(record, name, EvaluationAnswer) for name in files]
            known = has_file(record, CONDITIONS)
            conditions = read(record, CONDITIONS, EvaluationConditions) if known else []
            return evaluation_rows(run, iteration, list(zip(reports, answers, strict=True)), conditions)
        case "judge":
            judged, verdicts = read(record, JUDGED, JudgedEvaluation), read(record, VERDICTS, AnswerVerdict)
            return judge_rows(run, iteration, judged, verdicts)
        case unknown:
            assert_never(unknown)


class StageRowsReader:
    """`rows_of` for a stage of any run of a workspace, from its files alone."""

    def __init__(self, ledger: Ledger, artifacts: ArtifactStore) -> None:
        self._ledger = ledger
        self._artifacts = artifacts

    def __call__(self, record: StageRecord) -> StageRows:
        """Return the rows of a done stage; DamagedArtifactError when a file cannot be read."""
        settings = json.loads(self._ledger.get_run(record.adopted_from or record.run).settings_json)
        hindsight = HindsightSettings.model_validate(settings["hindsight"])
        return rows_of(record, self._ledger.done(record.key_of("sample")), hindsight, self._read)

    def _read(self, record: StageRecord, name: str, record_type: type[R]) -> list[R]:
        ref = file_of(record, name)
        # A later attempt that failed may have put another file in its place.
        self._artifacts.verify(ref)
        return self._artifacts.read_records(ref, record_type)


def answers_file(mode: EvaluationMode, index: int) -> str:
    """Return the name, without extension, of an evaluation's answers to the data set at `place`."""
    return f"answers_{mode}_{index}" if index else f"answers_{mode}"


def has_file(record: StageRecord, name: str) -> bool:
    """Whether a stage has a file of this name without extension."""
    return any(ref.path.rsplit("/", 1)[1].split(".")[0] == name for ref in record.outputs)


def file_of(record: StageRecord, name: str) -> ArtifactRef:
    """Return the reference to a stage's file by its name without extension."""
    return next(ref for ref in record.outputs if ref.path.rsplit("/", 1)[1].split(".")[0] == name)
