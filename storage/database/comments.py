"""What each column holds, said in the database itself: taken from the records' fields where it is said there.

A COMMENT in the SQL counts first; it belongs to columns that are computed, or are named otherwise than the field. A
table's column has the description of the field of its name in the records below; `run`, `iteration` and `stage` have
that of a stage's key. A view's column has the comment of the column of its name in the first of the tables and views
that it reads. `{table.column}` in a comment stands for that column's comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

import duckdb

from schemas.base import Record
from schemas.records.evaluation import EvaluationAnswer, EvaluationConditions, EvaluationReport
from schemas.records.hindsight import HindsightAttempt, HindsightBlock
from schemas.records.judging import AnswerVerdict, JudgedEvaluation
from schemas.records.ledger import RunRecord, RunWarning, StageKey, StageRecord
from schemas.records.question import Question
from schemas.records.question_set import PreparedSet, QuestionSet
from schemas.records.reports import RetrievalReport, SamplingReport
from schemas.records.rollout import Generation, Group, Observation
from schemas.records.score import RewardPart, Score
from schemas.records.teacher import QueryCredit, TeacherTargets
from schemas.records.update import StepReport, UpdateReport

RECORDS: Final[dict[str, tuple[type[Record], ...]]] = {
    "runs": (RunRecord,),
    "warnings": (RunWarning,),
    "stages": (StageRecord,),
    "questions": (Question,),
    "groups": (Group,),
    "rollouts": (Score,),
    "retries": (Score,),
    "reward_parts": (RewardPart,),
    "turns": (Generation, Observation),
    "hindsight_blocks": (HindsightBlock,),
    "hindsight_attempts": (HindsightAttempt,),
    "teacher_targets": (TeacherTargets,),
    "query_credit": (QueryCredit,),
    "update_metrics": (StepReport, UpdateReport),
    "evaluations": (EvaluationReport,),
    "evaluation_conditions": (EvaluationConditions,),
    "evaluation_answers": (EvaluationAnswer, EvaluationReport),
    "evaluation_verdicts": (AnswerVerdict,),
    "judged_evaluations": (JudgedEvaluation,),
    "question_sets": (QuestionSet, PreparedSet),
    "prepared_questions": (Question,),
    # Views that spread a record which lies in one column.
    "v_sampling": (SamplingReport,),
    "v_retrieval": (RetrievalReport,),
}
"""The records whose fields a table's columns are, the first that has the field."""

_SOURCE: Final = re.compile(r"\b(?:FROM|JOIN)\s+\(*\"?(\w+)", re.IGNORECASE)
_COLUMN: Final = re.compile(r"\{(\w+)\.(\w+)\}")
_Comments = dict[tuple[str, str], str]


def add_comments(connection: duckdb.DuckDBPyConnection) -> None:
    """Comment on the columns of the current database that the SQL leaves without a comment."""
    columns = connection.execute(
        "SELECT table_name, column_name, comment FROM duckdb_columns() "
        "WHERE NOT internal AND database_name = current_database() ORDER BY table_oid, column_index"
    ).fetchall()
    views = connection.execute(
        "SELECT view_name, sql FROM duckdb_views() WHERE NOT internal AND database_name = current_database() "
        "ORDER BY view_oid"
    ).fetchall()
    statements = [
        f'COMMENT ON COLUMN "{table}"."{column}" IS {_quoted(text)}'
        for (table, column), text in complete(columns, dict(views))
    ]
    if statements:
        connection.execute(";".join(statements))


def complete(
    columns: Sequence[tuple[str, str, str | None]], views: dict[str, str]
) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield the comments that are still to be made.

    `columns`: (table or view, column, its comment in the SQL) in their order; `views`: name to SQL, one that reads
    another after it.
    """
    said: _Comments = {(table, column): comment for table, column, comment in columns if comment}
    tables = dict.fromkeys(table for table, _, _ in columns if table not in views)
    names = {name: [column for table, column, _ in columns if table == name] for name in (*tables, *views)}
    for name in names:
        sources = [source for source in _SOURCE.findall(views.get(name, "")) if source in names]
        for column in names[name]:
            given = said.get((name, column))
            text = _filled(given, said) if given else _described(name, column) or _inherited(sources, column, said)
            if text and text != given:
                said[name, column] = text
                yield (name, column), text


def _described(table: str, column: str) -> str | None:
    records: list[type[Record]] = [*RECORDS.get(table, ())]
    if not table.startswith("v_"):
        records.append(StageKey)
    return next((record.model_fields[column].description for record in records if column in record.model_fields), None)


def _inherited(sources: list[str], column: str, said: _Comments) -> str | None:
    return next((said[source, column] for source in sources if (source, column) in said), None)


def _filled(text: str, said: _Comments) -> str:
    """Put the comments of other columns in place of their names; KeyError for a column that has none."""
    return _COLUMN.sub(lambda found: _lowered(said[found[1], found[2]]), text)


def _lowered(text: str) -> str:
    """Let a sentence go on: L_SD and KL keep their letters."""
    return text if text[1:2].isupper() or text[1:2] == "_" else text[:1].lower() + text[1:]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
