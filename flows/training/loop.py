"""A training run: the loop over iterations, with or without Prefect around it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from flows.console.errors import UserError
from flows.console.interrupts import fork_command, resume_command
from flows.evaluation.judging import api_key
from flows.run.inputs import check_inputs, keep_inputs
from flows.run.live import Runtime, open_runtime
from flows.run.preflight import check_start
from flows.run.progress import Reporter
from flows.run.records import new_run
from flows.run.status import tracked_status
from flows.settings.load import describe_differences, setting_differences, stored_settings
from flows.tracking.tracking import open_tracking
from flows.training.alarms import Alarms, RollbackError
from flows.training.checkpoints import first_iteration, retain_checkpoints
from flows.training.iteration import Training
from flows.training.job import Job, open_job
from flows.training.numbers import iteration_numbers
from flows.training.rollback import roll_back
from flows.training.watch import Watch
from schemas.records.ledger import RunRecord, RunWarning, StageKey, StageRecord
from schemas.records.run_kind import TrainingKind
from schemas.settings.added import is_free
from schemas.settings.retrieval import REACH
from schemas.settings.root import NothingLearntSettings, Settings
from storage.disk.files import remove_leftovers
from storage.errors import RunNotFoundError
from storage.retrieval.indexes import remove_unfinished
from storage.runs.lock import RunLock
from storage.storage import Storage

logger = logging.getLogger(__name__)
# Settings that change no result: a run goes on with others.
_MAY_CHANGE = REACH | {f"nothing_learnt.{name}" for name in NothingLearntSettings.model_fields}


Iterate = Callable[[int, StageRecord | None, bool], StageRecord]
"""Takes an iteration, the update before it, and whether an evaluation is due; returns its update."""
Evaluate = Callable[[int, StageRecord | None], StageRecord]


class RunHooks:
    """The parts of a run that Prefect does in its own way; these do them plainly."""

    def held(self) -> None:
        """Called once the run's lock is held."""

    def parts(self, training: Training) -> tuple[Evaluate, Iterate]:
        """Return what evaluates the start, and what does an iteration, of a run that is open."""
        return training.evaluate, training.iterate

    def show(self, iteration: int, numbers: dict[str, float]) -> None:
        """Called with the figures of each iteration."""

    def alarmed(self, alarm: RunWarning) -> None:
        """Called when the run goes wrong."""

    def goes_on(self, job: Job) -> None:
        """Called when a fork takes the run's place."""


def train_plain(settings: Settings | None, run: str, workspace: Path, reporter: Reporter, resume: bool = False) -> str:
    """Train without Prefect and return the run's name; with `resume` the stored settings are used."""
    drive(open_job(run, workspace, None if resume else settings), reporter)
    return run


def drive(job: Job, reporter: Reporter, hooks: RunHooks | None = None) -> None:
    """Run all iterations that are not done; a run that exists continues where it stopped.

    After an alarm under alarms.on_alarm 'rollback' a fork goes on in its place, while this process keeps both runs.
    Raises UserError when the name belongs to a run with other settings, RunLockedError when another process has it.
    """
    run, storage, hooks = job.run, job.storage, hooks or RunHooks()
    lock = RunLock(storage.workspace, run)
    with lock:
        hooks.held()
        record, settings = _as_it_stands(job)
        try:
            with open_runtime(settings, run, storage, reporter) as live:
                record = _checked(live, record)
                training = Training.over(live, lock, record.iterations_done)
                evaluate_start, iterate = hooks.parts(training)
                # The last iteration is visited again: finished stages are skipped, missing ones are run.
                first = first_iteration(storage, settings, record)
                start, policy = record.first_iteration - 1, _update_of(storage, run, first - 1)
                watch = Watch(live, training.runner.files, reporter.warned)
                alarms = Alarms(live, training.runner.files, record, reporter.warned, hooks.alarmed)
                with open_tracking(settings, record, storage, reporter) as tracking, tracked_status(storage, run):
                    reporter.run_started(run, settings, first)
                    watch.look_at_start(evaluate_start(start, _update_of(storage, run, start)), first - 1)
                    tracking.show(first - 1)
                    for iteration in range(first, settings.iterations + 1):
                        policy = iterate(iteration, policy, settings.evaluates_after(iteration))
                        training.runner.files.forget()
                        retain_checkpoints(storage, settings, run, iteration)
                        numbers = iteration_numbers(storage, run, iteration, iteration).get(iteration, {})
                        hooks.show(iteration, numbers)
                        reporter.iteration_done(iteration, numbers)
                        tracking.show(iteration)
                        watch.look_at(iteration)
                        alarms.look_at(iteration)
                reporter.run_done(run)
        except RollbackError as wanted:
            successor = roll_back(storage, run, wanted.alarm, reporter)
        else:
            return
        hooks.goes_on(successor)
        drive(successor, reporter, hooks)


def _as_it_stands(job: Job) -> tuple[RunRecord | None, Settings]:
    """Return a job's record, None for a new run, and the settings that it works with; UserError as of `drive`."""
    run, storage = job.run, job.storage
    record = storage.find_run(run) if job.settings is None else _known_run(storage, run, job.settings)
    if record is not None and not record.trains:
        raise UserError(f"run '{run}' is {record.kind.title}, which trains nothing; choose another name")
    settings = stored_settings(record) if record else job.settings
    assert settings is not None, "a new run has settings"
    return record, settings


def _checked(live: Runtime, record: RunRecord | None) -> RunRecord:
    """Return the record of a run that can begin or go on, a new one where there was none.

    A model, a question or a corpus that cannot be used leaves no run behind.
    """
    storage, settings = live.storage, live.settings
    if settings.evaluation.judge.while_training:
        _ = api_key(settings.evaluation.judge)
    check_start(live)
    sets = list(dict.fromkeys([*settings.data.training_sets, *live.evaluated_sets]))
    if record is not None:
        _check_index(storage, record, live.index_fingerprint)
        check_inputs(live, record, sets)
        _keep_settings(storage, record)
    record = record or _new_run(live)
    keep_inputs(live, sets)
    _remove_leftovers(storage, live.run)
    return record


def _update_of(storage: Storage, run: str, iteration: int) -> StageRecord | None:
    return storage.ledger.done(StageKey(run=run, iteration=iteration, stage="update"))


def _remove_leftovers(storage: Storage, run: str) -> None:
    """Remove what writes that were interrupted left; the run's lock says that none is under way."""
    for folder in (storage.workspace.run_folder(run), storage.workspace.checkpoints(run)):
        for path in remove_leftovers(folder):
            logger.info("removed %s, left by a process that died", path)
    remove_unfinished(storage.workspace)


def _known_run(storage: Storage, run: str, settings: Settings) -> RunRecord | None:
    """Return the record of a run with these settings, None when the name is free.

    How the retriever is reached may have changed, such as the address of a server, what is done where nothing is
    learnt or a run goes wrong, the ranks, the judge, and the trackers: the record has the new settings.
    """
    try:
        record = storage.find_run(run)
    except RunNotFoundError:
        return None
    is_same = record.settings_hash == settings.content_hash()
    former = stored_settings(record)
    if is_same and former == settings:
        return record
    if is_same or all(_may_change(name) for name, _, _ in setting_differences(record.settings_json, settings)):
        return record.model_copy(
            update={"settings_json": settings.model_dump_json(), "settings_hash": settings.content_hash()}
        )
    changes = describe_differences(record.settings_json, settings)
    raise UserError(
        f"run '{run}' exists with other settings ({changes}); choose another name with --run, continue with these "
        "settings in a new run with: --fork NEW, or continue it unchanged with: "
        f"{resume_command(run, storage.workspace.root)}"
    )


def _may_change(name: str) -> bool:
    return name in _MAY_CHANGE or is_free(name)


def _keep_settings(storage: Storage, record: RunRecord) -> None:
    """Make the settings that a run goes on with its stored ones."""
    former = storage.find_run(record.run)
    if former.settings_json != record.settings_json:
        changes = describe_differences(former.settings_json, stored_settings(record))
        logger.warning("run '%s' continues with %s", record.run, changes)
        storage.update_run(record)


def _check_index(storage: Storage, record: RunRecord, fingerprint: str) -> None:
    """Refuse to go on where searches would find what the run's iterations so far have not been able to find."""
    sampled = storage.ledger.done(StageKey(run=record.run, iteration=record.iterations_done, stage="sample"))
    searched = sampled.retrieval.index_hash if sampled and sampled.retrieval else fingerprint
    if searched != fingerprint:
        raise UserError(
            f"run '{record.run}' has searched index {searched[:16]}, what [retrieval] names is index "
            f"{fingerprint[:16]} now; put corpus, encoder or server back, or continue with the new one in a fork: "
            f"{fork_command(record.run, storage.workspace.root)}"
        )


def _new_run(live: Runtime) -> RunRecord:
    live.policy.move_to(0)
    record = new_run(live.run, live.settings, TrainingKind(), live.policy.sha256())
    live.storage.create_run(record)
    return record
