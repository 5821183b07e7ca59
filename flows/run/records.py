"""The record of a run: made in one place for runs of every kind, and compared when a name is known already."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import assert_never

from flows.console.errors import UserError
from flows.settings.load import describe_differences
from schemas.records.ledger import RunRecord
from schemas.records.run_kind import EvaluationKind, ForkKind, ReplayKind, RunKind, TrainingKind
from schemas.settings.root import Settings
from storage.errors import RunNotFoundError
from storage.storage import Storage


def new_run(run: str, settings: Settings, kind: RunKind, policy_sha256: str = "") -> RunRecord:
    """Return the record of a run that begins now; `policy_sha256` is the hash of the policy that it trains."""
    now = datetime.now(UTC)
    num_iterations, num_updates, iterations_done = _extent(kind, settings)
    return RunRecord(
        run=run,
        # A fork is made ready and trained afterwards: it stands as a run that was stopped.
        status="interrupted" if isinstance(kind, ForkKind) else "running",
        settings_json=settings.model_dump_json(),
        settings_hash=settings.content_hash(),
        code_version=version("sdsearch"),
        seed=settings.seed,
        num_iterations=num_iterations,
        kind=kind,
        iterations_done=iterations_done,
        policy_version=num_updates,
        policy_sha256=policy_sha256,
        created_at=now,
        updated_at=now,
    )


def find_known(storage: Storage, run: str, is_it: Callable[[RunKind], bool], flag: str) -> RunRecord | None:
    """Return the record of a run that is there already, None when its name is free.

    UserError when `is_it` does not hold of its kind: the name belongs to another run. `flag` chooses another one.
    """
    try:
        record = storage.find_run(run)
    except RunNotFoundError:
        return None
    if not is_it(record.kind):
        raise UserError(f"run '{run}' is {record.kind.title}; choose another name with {flag}")
    return record


def check_settings(record: RunRecord, settings: Settings, flag: str) -> None:
    """Raise UserError, which names the differences, for a known run with other settings."""
    if record.settings_hash != settings.content_hash():
        changes = describe_differences(record.settings_json, settings)
        raise UserError(
            f"run '{record.run}', {record.kind.title}, exists with other settings ({changes}); choose another name "
            f"with {flag}"
        )


def _extent(kind: RunKind, settings: Settings) -> tuple[int, int, int]:
    """Return the iterations that a run is asked for, the updates behind its first policy, and the iterations done."""
    match kind:
        case TrainingKind():
            return settings.iterations, 0, 0
        case ForkKind(first_iteration=first):
            return settings.iterations, first - 1, first - 1
        case ReplayKind(first=first, last=last):
            return last - first + 1, 0, 0
        case EvaluationKind(version=version):
            return 1, version, 0
        case unknown:
            assert_never(unknown)
