"""Records to rows: one Arrow table per database table, typed by the DDL, for one iteration of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from schemas.base import Record
from schemas.records.evaluation import EvaluationAnswer, EvaluationConditions, EvaluationReport
from schemas.records.hindsight import HindsightBlock
from schemas.records.judging import AnswerVerdict, JudgedEvaluation
from schemas.records.ledger import ArtifactRef, StageName
from schemas.records.teacher import QueryCredit, TeacherTargets
from schemas.records.update import UpdateReport
from storage.database.tables import table_schemas

StageRows = dict[str, pa.Table]

STAGE_TABLES: dict[StageName, tuple[str, ...]] = {
    "sample": (),
    "score": ("groups", "rollouts", "turns", "searches", "reward_parts", "iteration_metrics", "retries"),
    "hindsight": ("hindsight_blocks", "hindsight_attempts"),
    "teacher": ("teacher_targets", "query_credit"),
    "update": ("update_metrics",),
    "evaluate": ("evaluations", "evaluation_conditions", "evaluation_answers"),
    "judge": ("judged_evaluations", "evaluation_verdicts"),
}
"""The tables whose rows of an iteration belong to a stage and are replaced when it runs again."""

SHARED_TABLES: dict[StageName, tuple[str, ...]] = {"score": ("questions",)}
"""The tables that a stage adds rows to where the key is new; they belong to no iteration."""


def build(table_name: str, run: str, iteration: int, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Return rows of a table in the DDL's types; `columns` has every column but run and iteration."""
    schema = table_schemas()[table_name]
    num_rows = len(next(iter(columns.values())))
    whole = {"run": [run] * num_rows, "iteration": [iteration] * num_rows, **columns}
    unknown = set(whole) - set(schema.names) - {"iteration"}
    assert not unknown, f"{table_name} has no columns {sorted(unknown)}"
    return pa.Table.from_arrays([pa.array(whole[field.name], type=field.type) for field in schema], schema=schema)


def build_from_records(
    table_name: str, run: str, iteration: int, records: Sequence[Record], columns: Mapping[str, Sequence[Any]]
) -> pa.Table:
    """As `build`; what `columns` leaves out is read from the records' fields of the same name."""
    names = [name for name in table_schemas()[table_name].names if name not in ("run", "iteration", *columns)]
    fields = {name: [getattr(record, name) for record in records] for name in names}
    return build(table_name, run, iteration, {**fields, **columns})


def hindsight_rows(run: str, iteration: int, blocks: Sequence[HindsightBlock]) -> StageRows:
    """Return the rows of the hindsight stage: blocks and their attempts."""
    attempts = [
        (block_index, attempt_index, block.group_id, attempt)
        for block_index, block in enumerate(blocks)
        for attempt_index, attempt in enumerate(block.attempts)
    ]
    block_columns: dict[str, Sequence[Any]] = {
        "block_index": range(len(blocks)),
        "num_attempts": [len(block.attempts) for block in blocks],
    }
    attempt_columns: dict[str, Sequence[Any]] = {
        "block_index": [block_index for block_index, _, _, _ in attempts],
        "attempt_index": [attempt_index for _, attempt_index, _, _ in attempts],
        "group_id": [group_id for _, _, group_id, _ in attempts],
    }
    records = [attempt for _, _, _, attempt in attempts]
    return {
        "hindsight_blocks": build_from_records("hindsight_blocks", run, iteration, blocks, block_columns),
        "hindsight_attempts": build_from_records("hindsight_attempts", run, iteration, records, attempt_columns),
    }


_TOPS: Final = ("teacher_top", "student_top")


def _dumped(credit: Sequence[QueryCredit], name: str) -> list[list[dict[str, Any]]]:
    return [[token.model_dump() for token in getattr(each, name)] for each in credit]


def teacher_rows(
    run: str,
    iteration: int,
    targets: Sequence[TeacherTargets],
    credit: Sequence[QueryCredit],
    tensors: ArtifactRef,
) -> StageRows:
    """Return the rows of the teacher stage; `tensors` is the file that the targets' rows lie in."""
    return {
        "teacher_targets": build_from_records(
            "teacher_targets", run, iteration, targets, {"tensor_path": [tensors.path] * len(targets)}
        ),
        "query_credit": build_from_records(
            "query_credit", run, iteration, credit, {name: _dumped(credit, name) for name in _TOPS}
        ),
    }


def update_rows(run: str, iteration: int, report: UpdateReport) -> StageRows:
    """Return the rows of the update stage: one an optimiser step."""
    num_steps = len(report.steps)
    columns: dict[str, Sequence[Any]] = {
        "policy_version": [report.policy_version] * num_steps,
        "update_num_tokens": [report.num_tokens] * num_steps,
    }
    return {"update_metrics": build_from_records("update_metrics", run, iteration, report.steps, columns)}


def evaluation_rows(
    run: str,
    iteration: int,
    evaluations: Sequence[tuple[EvaluationReport, Sequence[EvaluationAnswer]]],
    conditions: Sequence[EvaluationConditions] = (),
) -> StageRows:
    """Return the rows of the evaluate stage; each report comes with its answers."""
    reports = [report for report, _ in evaluations]
    pairs = [(report, answer) for report, answers in evaluations for answer in answers]
    columns = {name: [getattr(report, name) for report, _ in pairs] for name in ("mode", "dataset", "split")}
    return {
        "evaluations": build_from_records(
            "evaluations", run, iteration, reports, {"updates_done": [report.iteration for report in reports]}
        ),
        "evaluation_conditions": build_from_records(
            "evaluation_conditions", run, iteration, conditions, {"fingerprint": [c.fingerprint for c in conditions]}
        ),
        "evaluation_answers": build_from_records(
            "evaluation_answers", run, iteration, [answer for _, answer in pairs], columns
        ),
    }


def judge_rows(
    run: str, iteration: int, judged: Sequence[JudgedEvaluation], verdicts: Sequence[AnswerVerdict]
) -> StageRows:
    """Return the rows of the judge stage."""
    return {
        "judged_evaluations": build_from_records("judged_evaluations", run, iteration, judged, {}),
        "evaluation_verdicts": build_from_records("evaluation_verdicts", run, iteration, verdicts, {}),
    }
