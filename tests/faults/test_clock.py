"""A clock that is set back while a run works, by an hour at each look: nothing that is decided depends on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, ClassVar

import pytest

import flows.run.perform
import flows.run.records
import flows.run.status
import storage.runs.ledger
from flows.app import run_command
from schemas.records.ledger import StageKey
from schemas.records.rollout import Group
from sdsearch.credit.teacher import compute_targets
from storage.database.connection import Database
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.workspace import Workspace
from tests.crash.compare import Snapshot, differences, snapshot
from tests.faults.runs import RUN, quick, train


class BackwardsClock(datetime):
    """Goes back an hour whenever it is looked at."""

    _moment: ClassVar[datetime] = datetime(2026, 6, 1, tzinfo=UTC)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        BackwardsClock._moment -= timedelta(hours=1)
        return BackwardsClock._moment


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def stop_in_the_second_iteration(
    model: Any, tokenizer: Any, groups: Sequence[Group], *arguments: Any, **settings: Any
) -> Any:
    if groups:  # In the first there is no teacher: warm-up.
        raise StoppedError
    return compute_targets(model, tokenizer, groups, *arguments, **settings)


def test_a_clock_that_goes_backwards(
    tmp_path: Path, expected: Snapshot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (storage.runs.ledger, flows.run.perform, flows.run.status, flows.run.records):
        monkeypatch.setattr(module, "datetime", BackwardsClock)

    with monkeypatch.context() as patch:
        patch.setattr("flows.training.stages.teacher.compute_targets", stop_in_the_second_iteration)
        with pytest.raises(StoppedError):
            train(tmp_path, quick())
    train(tmp_path)
    assert [status for status, _ in attempts(tmp_path)] == ["failed", "done"], "attempts keep their order"
    starts = [started for _, started in attempts(tmp_path)]
    assert starts[1] < starts[0], "though the second began earlier by the clock"
    rows = Database(Workspace(tmp_path)).query("SELECT duration_s, status FROM stages").to_pylist()
    assert {row["duration_s"] for row in rows} == {0.0}, "never negative"
    assert differences(snapshot(tmp_path), expected) == []
    capsys.readouterr()
    for command in (["runs"], ["show", RUN]):
        assert run_command([*command, "--workspace", str(tmp_path)]) == 0
        assert not re.search(r"\s-\d[\d.]* (s|min|h)\b", capsys.readouterr().out), "no negative duration is shown"


def attempts(workspace: Path) -> list[tuple[str, datetime]]:
    key = StageKey(run=RUN, iteration=2, stage="teacher")
    history = Ledger(ArtifactStore(Workspace(workspace))).history(key)
    return [(attempt.status, attempt.started_at) for attempt in history.attempts]
