"""Records of runs and of attempts at stages as rows of `runs` and `stages`, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from schemas.base import Record
from schemas.records.ledger import RunRecord, StageRecord
from schemas.records.run_kind import EvaluationKind, ForkKind, ReplayKind, RunKind, TrainingKind
from storage.database.tables import table_schemas


def run_rows(record: RunRecord) -> pa.Table:
    """Return a run's row; of its kind the columns hold what they do not hold otherwise."""
    kind = {"kind": record.kind.kind, "source": record.source, "first_iteration": record.first_iteration}
    return pa.Table.from_pylist([{**_plain(record), **kind}], schema=table_schemas()["runs"])


def warning_rows(record: RunRecord) -> pa.Table:
    """Return a row for each warning that was said of a run."""
    rows = [{"run": record.run, **warning.model_dump()} for warning in record.warnings]
    return pa.Table.from_pylist(rows, schema=table_schemas()["warnings"])


def run_of(row: Mapping[str, Any]) -> RunRecord:
    """Return the record that a row of `runs` was made from, but for its warnings."""
    columns = dict(row)
    kind = _kind_of(columns)
    del columns["source"], columns["first_iteration"]
    return RunRecord.model_validate({**_with_zones(columns), "kind": kind})


def stage_rows(attempts: Sequence[StageRecord]) -> pa.Table:
    """Return the rows of attempts at stages."""
    return pa.Table.from_pylist([_plain(attempt) for attempt in attempts], schema=table_schemas()["stages"])


def stage_of(row: Mapping[str, Any]) -> StageRecord:
    """Return the record that a row of `stages` was made from."""
    return StageRecord.model_validate(_with_zones(row))


def _kind_of(row: Mapping[str, Any]) -> RunKind:
    source, first = row["source"], row["first_iteration"]
    match row["kind"]:
        case "fork":
            return ForkKind(source=source, first_iteration=first)
        case "replay":
            return ReplayKind(source=source, first=first, last=first + row["num_iterations"] - 1)
        case "evaluation":
            return EvaluationKind(source=source, version=row["policy_version"])
        case _:  # 'training'; of any other word the record says that it is none.
            return TrainingKind(kind=row["kind"])


def _plain(record: Record) -> dict[str, Any]:
    """Return a record's fields as the tables hold them: times as UTC without a zone."""
    return {
        name: value.astimezone(UTC).replace(tzinfo=None) if isinstance(value, datetime) else value
        for name, value in record.model_dump().items()
    }


def _with_zones(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.replace(tzinfo=UTC) if isinstance(value, datetime) else value for name, value in row.items()}
