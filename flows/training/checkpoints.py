"""Which checkpoints a run keeps, and which one it resumes from."""

from __future__ import annotations

import logging

from schemas.records.evaluation import EvaluationReport
from schemas.records.ledger import RunRecord, StageKey
from schemas.records.run_kind import ReplayKind
from schemas.settings.root import Settings
from storage.database.stage_rows import file_of
from storage.errors import DamagedArtifactError
from storage.storage import Storage

logger = logging.getLogger(__name__)


def retain_checkpoints(storage: Storage, settings: Settings, run: str, iteration: int) -> None:
    """Keep the newest checkpoints, the best on dev, what unfinished replays need, and the evaluated where it is wanted.

    An iteration that is visited again may not be the last: whatever came after it stays.
    """
    kept = settings.storage
    newest = [
        held
        for held in storage.checkpoints.versions(run)
        if held > iteration - kept.keep_checkpoints or (kept.keep_evaluated and settings.evaluates_after(held))
    ]
    needed = {*_needed_by_replays(storage, run), *_resumed_from(storage, settings, run, iteration)}
    storage.checkpoints.prune(run, keep={*newest, *_best_on_dev(storage, run), *needed})


def _resumed_from(storage: Storage, settings: Settings, run: str, iteration: int) -> list[int]:
    """Return the newest version with its optimiser, where some are stored without: updates are taken again from it."""
    if settings.storage.optimiser_every == 1:
        return []
    held = [version for version in storage.checkpoints.versions(run) if version <= iteration]
    return [version for version in held if storage.checkpoints.has_optimiser(run, version)][-1:]


def _needed_by_replays(storage: Storage, run: str) -> list[int]:
    """Return the versions that replays of the run which are not done yet may ask."""
    unfinished = [record.kind for record in storage.ledger.list_runs() if record.status != "done"]
    return [
        iteration - 1
        for kind in unfinished
        if isinstance(kind, ReplayKind) and kind.source == run
        for iteration in range(kind.first, kind.last + 1)
    ]


def _best_on_dev(storage: Storage, run: str) -> list[int]:
    """Return the version with the highest EM on dev, the earliest of equals; none before the first evaluation.

    Versions whose evaluation cannot be read are returned too: one of them may be the best.
    """
    reports: list[EvaluationReport] = []
    unknown: list[int] = []
    for held in storage.checkpoints.versions(run):
        record = storage.ledger.done(StageKey(run=run, iteration=held, stage="evaluate"))
        try:
            reports += storage.artifacts.read_records(file_of(record, "reports"), EvaluationReport) if record else []
        except DamagedArtifactError:
            unknown.append(held)
    reports = [report for report in reports if not report.further]
    best = min(reports, key=lambda report: (report.mode != "greedy", -report.em, report.policy_version), default=None)
    return [*unknown, *([best.policy_version] if best else [])]


def first_iteration(storage: Storage, settings: Settings, record: RunRecord) -> int:
    """Return the iteration that a run goes on with: its last one, or the one after the newest intact checkpoint.

    From there on, the updates are taken again from what was sampled for them, which gives the same weights. Versions
    that were stored without their optimiser are removed where the next update would need it: they are made again.
    """
    begun, last = record.first_iteration, record.iterations_done
    for held in sorted({last, *storage.checkpoints.versions(record.run)}, reverse=True):
        try:
            if max(1, begun - 1) <= held <= last:
                storage.checkpoints.verify(record.run, held)
                if not _can_go_on(storage, settings, record.run, held):
                    continue
                _remove_between(storage, settings, record.run, held, last)
                return max(begun, min(held + 1, last))
        except DamagedArtifactError as error:
            logger.warning("an earlier checkpoint is used: %s", error)
    if begun > 1:
        raise DamagedArtifactError(
            f"run '{record.run}' has no intact checkpoint, not even of version {begun - 1}, which it began with; make "
            f"another fork of run '{record.source}'"
        )
    _remove_between(storage, settings, record.run, 0, last)
    if last > 1:
        logger.warning("run '%s' has no intact checkpoint to go on from; all its updates are taken again", record.run)
    return 1


def _can_go_on(storage: Storage, settings: Settings, run: str, version: int) -> bool:
    """Return whether the next update, if there is one, can be taken from a version."""
    every = settings.storage.optimiser_every
    return every == 1 or version == settings.iterations or storage.checkpoints.has_optimiser(run, version)


def _remove_between(storage: Storage, settings: Settings, run: str, after: int, last: int) -> None:
    """Remove the versions after one up to the last one, where some have no optimiser: their updates are taken again."""
    held = storage.checkpoints.versions(run)
    gone = [version for version in held if after < version <= last and settings.storage.optimiser_every > 1]
    if gone:
        logger.info("updates %d to %d are taken again: versions were stored without their optimiser", after + 1, last)
        storage.checkpoints.prune(run, keep=set(held) - set(gone))
