"""A rollback: a fork of a run that went wrong, from its best policy on dev and with a lower learning rate."""

from __future__ import annotations

import re
from typing import Final

from flows.run.progress import Reporter
from flows.settings.load import stored_settings
from flows.training.fork import fork_run
from flows.training.job import Job
from flows.training.said import Said
from schemas.records.evaluation import EvaluationReport
from schemas.records.ledger import RunWarning, StageKey
from schemas.settings.root import Settings
from storage.database.stage_rows import file_of
from storage.errors import DamagedArtifactError
from storage.storage import Storage

_NAME: Final = re.compile(r"(.+)-rollback-(\d+)")
_LONGEST_STEM: Final = 60


def num_rollbacks(run: str) -> int:
    """Return how many rollbacks led to a run: its name says so."""
    match = _NAME.fullmatch(run)
    return int(match[2]) if match else 0


def best_version(storage: Storage, run: str) -> int:
    """Return the version with the highest EM on dev that can be trained on, the earliest of equals.

    Greedy evaluations count first. The version that the run began with where none is known.
    """
    start = storage.ledger.start_of(run)
    held = [each for each in storage.checkpoints.versions(run) if storage.checkpoints.has_optimiser(run, each)]
    reports: list[EvaluationReport] = []
    for version in {start, *held}:
        record = storage.ledger.done(StageKey(run=run, iteration=version, stage="evaluate"))
        try:
            reports += storage.artifacts.read_records(file_of(record, "reports"), EvaluationReport) if record else []
        except DamagedArtifactError:
            continue
    best = min(reports, key=lambda each: (each.mode != "greedy", -each.em, each.policy_version), default=None)
    return best.policy_version if best else start


def roll_back(storage: Storage, run: str, alarm: RunWarning, reporter: Reporter) -> Job:
    """Return the job that goes on in a run's place, and say so in the records of both; the caller holds its lock.

    The best policy of the run is forked; where that is the model itself, a new run begins. What is made already stays,
    so that this can be done again after a stop. Raises UserError where the name belongs to another run.
    """
    settings = stored_settings(storage.ledger.get_run(run))
    version, lowered = best_version(storage, run), _lowered(settings)
    successor = _successor(run)
    rates = f"{settings.update.learning_rate:g} -> {lowered.update.learning_rate:g}"
    note = RunWarning(
        kind="rolled_back",
        iteration=alarm.iteration,
        text=f"rolled back to version {version}: run '{successor}' goes on from it, update.learning_rate {rates}",
    )
    if version:
        fork_run(storage, run, successor, lowered, version, holds_source=True)
        _note(storage, successor, note.model_copy(update={"text": f"{_origin(run, version, alarm)} {rates}"}))
    said = Said(storage, run, lambda warning: reporter.warned(warning.text))
    if said.find("rolled_back") is None:
        said.say(note)
    return Job(successor, storage, lowered)


def _note(storage: Storage, run: str, note: RunWarning) -> None:
    said = Said(storage, run)
    if said.find("rolled_back") is None:
        said.say(note)


def _origin(run: str, version: int, alarm: RunWarning) -> str:
    return (
        f"goes on from version {version} of run '{run}', which went wrong after {alarm.iteration} updates "
        f"({alarm.kind}), with update.learning_rate"
    )


def _successor(run: str) -> str:
    match = _NAME.fullmatch(run)
    stem = match[1] if match else run
    return f"{stem[:_LONGEST_STEM]}-rollback-{num_rollbacks(run) + 1}"


def _lowered(settings: Settings) -> Settings:
    rate = settings.update.learning_rate * settings.alarms.rollback_learning_rate
    update = settings.update.model_copy(update={"learning_rate": rate})
    return settings.model_copy(update={"update": update})
