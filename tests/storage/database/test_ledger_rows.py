"""A row of `runs` holds a run's record whole: a record that is lost is put back from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.records.run_kind import EvaluationKind, ForkKind, ReplayKind, RunKind, TrainingKind
from storage.database.ledger_rows import run_of
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.records import make_run


@pytest.mark.parametrize(
    ("kind", "changes", "columns"),
    [
        (TrainingKind(), {}, ("training", None, 1)),
        (ForkKind(source="a", first_iteration=4), {}, ("fork", "a", 4)),
        (ReplayKind(source="a", first=3, last=5), {"num_iterations": 3}, ("replay", "a", 3)),
        (EvaluationKind(source="a", version=7), {"policy_version": 7}, ("evaluation", "a", 1)),
        (EvaluationKind(source=None, version=0), {}, ("evaluation", None, 1)),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_record_that_is_lost_comes_back_as_it_was(
    kind: RunKind, changes: dict[str, int], columns: tuple[str, str | None, int], tmp_path: Path
) -> None:
    storage = Storage(Workspace.open(tmp_path))
    record = make_run().model_copy(update={"kind": kind, **changes})
    storage.create_run(record)
    assert storage.sync.flush()
    (row,) = storage.database.query("SELECT * FROM runs").to_pylist()
    assert (row["kind"], row["source"], row["first_iteration"]) == columns
    assert run_of(row) == record
    (storage.workspace.run_folder("first") / "run.json").write_text("{}")
    assert storage.find_run("first") == record
    assert storage.ledger.get_run("first") == record
