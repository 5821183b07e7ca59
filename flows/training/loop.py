"""A training run: the loop over iterations, with or without Prefect around it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from flows.console.errors import UserError
from flows.console.interrupts import fork_command, resume_command
from flows.run.inputs import check_inputs, keep_inputs
from flows.run.live import Runtime, open_runtime
from flows.run.preflight import check_start
from flows.run.progress import Reporter
from flows.run.status import tracked_status
from flows.settings.load import describe_differences, setting_differences, stored_settings
from flows.training.checkpoints import first_iteration, retain_checkpoints
from flows.training.iteration import PLAIN, iterate
from flows.training.numbers import iteration_numbers
from flows.training.watch import Watch
from schemas.records.ledger import RunRecord, StageKey, StageRecord
from schemas.settings.retrieval import REACH
from schemas.settings.root import NothingLearntSettings, Settings
from storage.disk.files import remove_leftovers
from storage.errors import RunNotFoundError
from storage.retrieval.indexes import remove_unfinished
from storage.runs.lock import RunLock
from storage.storage import Storage
from storage.workspace import Workspace, validate_run_name

logger = logging.getLogger(__name__)
# Settings that change no result: a run goes on with others.
_MAY_CHANGE = REACH | {f"nothing_learnt.{name}" for name in NothingLearntSettings.model_fields}


class RunHooks(NamedTuple):
    """The parts of a run that may be done plainly or by Prefect.

    `held` is called once the run's lock is held, `show` with the figures of each iteration.
    """

    evaluate_start: Callable[[str, int, StageRecord | None], StageRecord]
    iterate_once: Callable[[str, int, StageRecord | None, bool], StageRecord]
    held: Callable[[], None] = lambda: None
    show: Callable[[int, dict[str, float]], None] = lambda iteration, numbers: None


def iterate_plainly(run: str, iteration: int, last_update: StageRecord | None, evaluation_is_due: bool) -> StageRecord:
    """One iteration as plain function calls."""
    return iterate(PLAIN, run, iteration, last_update, evaluation_is_due)


_PLAINLY = RunHooks(PLAIN.evaluate_policy, iterate_plainly)


def train_plain(settings: Settings | None, run: str, workspace: Path, reporter: Reporter, resume: bool = False) -> str:
    """Train without Prefect and return the run's name; with `resume` the stored settings are used."""
    storage = open_storage(workspace, settings)
    drive(settings, run, storage, reporter, _PLAINLY, resume=resume)
    return run


def open_storage(workspace: Path, settings: Settings | None = None) -> Storage:
    """Open a workspace; WorkspaceError when it cannot be written."""
    deadline_s = settings.storage.database_deadline_s if settings else 60.0
    return Storage(Workspace.open(workspace), deadline_s)


def drive(
    settings: Settings | None,
    run: str,
    storage: Storage,
    reporter: Reporter,
    do: RunHooks,
    *,
    resume: bool,
) -> None:
    """Run all iterations that are not done; a run that exists goes on where it stopped.

    Raises UserError when the name belongs to a run with other settings, RunLockedError when another process has it.
    """
    validate_run_name(run)
    lock = RunLock(storage.workspace, run)
    with lock:
        do.held()
        record = storage.find_run(run) if resume else _known_run(storage, run, settings)
        if record is not None and (origin := record.replay_of or record.evaluation_of) is not None:
            what = "a replay" if record.replay_of else "an evaluation"
            raise UserError(f"run '{run}' is {what} of '{origin}' and trains nothing; choose another name")
        settings = stored_settings(record) if record else settings
        assert settings is not None, "a new run has settings"
        with open_runtime(settings, run, storage, reporter, lock) as runtime:
            # A model, a question or a corpus that cannot be used leaves no run behind.
            check_start(runtime)
            sets = list(dict.fromkeys([*settings.data.training_sets, runtime.evaluated_set]))
            if record is not None:
                _check_index(storage, record, runtime.index_fingerprint)
                check_inputs(runtime, record, sets)
                _keep_settings(storage, record)
            record = record or _new_run(storage, run, settings, _starting_sha256(runtime))
            keep_inputs(runtime, sets)
            _remove_leftovers(storage, run)
            # The last iteration is walked again: its done stages cost milliseconds, what it lacks is made up.
            first = first_iteration(storage, record)
            start, policy = record.first_iteration - 1, _update_of(storage, run, first - 1)
            watch = Watch(runtime, reporter.warned)
            with tracked_status(storage, run):
                reporter.run_started(run, settings, first)
                watch.look_at_start(do.evaluate_start(run, start, _update_of(storage, run, start)), first - 1)
                for iteration in range(first, settings.iterations + 1):
                    policy = do.iterate_once(run, iteration, policy, evaluation_is_due(settings, iteration))
                    runtime.forget_records()
                    retain_checkpoints(storage, settings, run, iteration)
                    numbers = iteration_numbers(storage, run, iteration, iteration).get(iteration, {})
                    do.show(iteration, numbers)
                    reporter.iteration_done(iteration, numbers)
                    watch.look_at(iteration)
            reporter.run_done(run)


def evaluation_is_due(settings: Settings, iteration: int) -> bool:
    """True every N iterations and after the last."""
    return iteration % settings.evaluation.every == 0 or iteration == settings.iterations


def _update_of(storage: Storage, run: str, iteration: int) -> StageRecord | None:
    return storage.ledger.done(StageKey(run=run, iteration=iteration, stage="update"))


def _remove_leftovers(storage: Storage, run: str) -> None:
    """Remove what writes that were interrupted left; the run's lock says that none is under way."""
    for folder in (storage.workspace.run_folder(run), storage.workspace.checkpoints(run)):
        for path in remove_leftovers(folder):
            logger.info("removed %s, left by a process that died", path)
    remove_unfinished(storage.workspace)


def _known_run(storage: Storage, run: str, settings: Settings | None) -> RunRecord | None:
    """Return the record of a run with these settings, None when the name is free.

    How the retriever is reached may have changed, such as the address of a server, and what is done where nothing is
    learnt: the record has the new settings.
    """
    assert settings is not None, "a new run has settings"
    try:
        record = storage.find_run(run)
    except RunNotFoundError:
        return None
    if record.settings_hash == settings.content_hash():
        return record
    if {name for name, _, _ in setting_differences(record.settings_json, settings)} <= _MAY_CHANGE:
        return record.model_copy(
            update={"settings_json": settings.model_dump_json(), "settings_hash": settings.content_hash()}
        )
    changes = describe_differences(record.settings_json, settings)
    raise UserError(
        f"run '{run}' exists with other settings ({changes}); choose another name with --run, go on with them from "
        f"where it stands with: --fork NEW, or continue it as it is with: {resume_command(run, storage.workspace.root)}"
    )


def _keep_settings(storage: Storage, record: RunRecord) -> None:
    """Make the settings that a run goes on with its stored ones."""
    former = storage.find_run(record.run)
    if former.settings_hash != record.settings_hash:
        changes = describe_differences(former.settings_json, stored_settings(record))
        logger.warning("run '%s' goes on with %s", record.run, changes)
        storage.update_run(record)


def _check_index(storage: Storage, record: RunRecord, fingerprint: str) -> None:
    """Refuse to go on where searches would find what the run's iterations so far have not been able to find."""
    sampled = storage.ledger.done(StageKey(run=record.run, iteration=record.iterations_done, stage="sample"))
    searched = sampled.retrieval.index_hash if sampled and sampled.retrieval else fingerprint
    if searched != fingerprint:
        raise UserError(
            f"run '{record.run}' has searched index {searched[:16]}, what [retrieval] names is index "
            f"{fingerprint[:16]} now; put corpus, encoder or server back, or go on with the new one as a fork: "
            f"{fork_command(record.run, storage.workspace.root)}"
        )


def _starting_sha256(runtime: Runtime) -> str:
    runtime.policy.move_to(0)
    return runtime.policy.sha256()


def _new_run(storage: Storage, run: str, settings: Settings, policy_sha256: str) -> RunRecord:
    now = datetime.now(UTC)
    record = RunRecord(
        run=run,
        status="running",
        settings_json=settings.model_dump_json(),
        settings_hash=settings.content_hash(),
        code_version=version("sdsearch"),
        seed=settings.seed,
        num_iterations=settings.iterations,
        iterations_done=0,
        policy_version=0,
        policy_sha256=policy_sha256,
        created_at=now,
        updated_at=now,
    )
    storage.create_run(record)
    return record
