"""A training run: the loop over iterations, with or without Prefect around it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from flows.errors import UserError
from flows.iteration import PLAIN, iterate
from flows.report import Reporter
from flows.runtime import Stores, open_runtime
from flows.settings import setting_changes, stored_settings
from schemas.config import Settings
from schemas.ledger import RunRecord, RunStatus, StageRecord
from storage.errors import RunNotFoundError
from storage.runlock import RunLock
from storage.workspace import Workspace, validate_run_name

IterateOnce = Callable[[str, int, StageRecord | None, bool], StageRecord]
EvaluateStart = Callable[[str, int, StageRecord | None], StageRecord]


def train_plain(settings: Settings | None, run: str, workspace: Path, reporter: Reporter, resume: bool = False) -> str:
    """Train without Prefect and return the run's name; with `resume` the stored settings are used."""

    def iterate_once(run: str, iteration: int, policy: StageRecord | None, evaluation_is_due: bool) -> StageRecord:
        return iterate(PLAIN, run, iteration, policy, evaluation_is_due)

    stores = open_stores(workspace, settings)
    return drive(settings, run, stores, reporter, iterate_once, PLAIN.evaluate_policy, resume=resume)


def open_stores(workspace: Path, settings: Settings | None = None) -> Stores:
    """Open a workspace; WorkspaceError when it cannot be written."""
    deadline_s = settings.storage.database_deadline_s if settings else 60.0
    return Stores(Workspace.open(workspace), deadline_s)


def drive(
    settings: Settings | None,
    run: str,
    stores: Stores,
    reporter: Reporter,
    iterate_once: IterateOnce,
    evaluate_start: EvaluateStart,
    *,
    resume: bool,
) -> str:
    """Run all iterations that are not done; a run that exists goes on where it stopped.

    Raises UserError when the name belongs to a run with other settings, RunLockedError when another process has it.
    """
    validate_run_name(run)
    with RunLock(stores.workspace, run):
        record = stores.ledger.get_run(run) if resume else _known_run(stores, run, settings)
        settings = stored_settings(record) if record else settings
        assert settings is not None, "a new run has settings"
        with open_runtime(settings, run, stores, reporter) as runtime:
            # A model, a question or a corpus that cannot be used leaves no run behind.
            runtime.prepare()
            record = record or _new_run(stores, run, settings)
            # The last iteration is walked again: its done stages cost milliseconds, what it lacks is made up.
            first = max(1, record.iterations_done)
            policy = _update_of(stores, run, first - 1)
            reporter.run_started(run, settings, first)
            _set_status(stores, run, "running")
            try:
                evaluate_start(run, 0, None)
                for iteration in range(first, settings.iterations + 1):
                    policy = iterate_once(run, iteration, policy, evaluation_is_due(settings, iteration))
                    retain_checkpoints(stores, settings, run, iteration)
                    reporter.iteration_done(iteration, iteration_numbers(stores, run, iteration))
            except BaseException as error:
                # Whatever stops the run shows in its row and goes on its way; what is no Exception is an interrupt.
                _set_status(stores, run, "failed" if isinstance(error, Exception) else "interrupted")
                raise
            _set_status(stores, run, "done")
            stores.database.checkpoint()
            reporter.run_done(run)
    return run


def evaluation_is_due(settings: Settings, iteration: int) -> bool:
    """True every N iterations and after the last."""
    return iteration % settings.evaluation.every == 0 or iteration == settings.iterations


def iteration_numbers(stores: Stores, run: str, iteration: int) -> dict[str, float]:
    """Return an iteration's row of `v_iterations`, its numbers only."""
    rows = stores.database.query(
        "SELECT * FROM v_iterations WHERE run = $run AND iteration = $iteration", {"run": run, "iteration": iteration}
    ).to_pylist()
    numbers = rows[0] if rows else {}
    return {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)}


def retain_checkpoints(stores: Stores, settings: Settings, run: str, iteration: int) -> None:
    """Keep the newest checkpoints and the best on dev."""
    newest = range(iteration - settings.storage.keep_checkpoints + 1, iteration + 1)
    best = stores.database.query(
        "SELECT policy_version FROM evaluations WHERE run = $run AND iteration > 0 "
        "ORDER BY mode = 'greedy' DESC, em DESC, policy_version LIMIT 1",
        {"run": run},
    )["policy_version"].to_pylist()
    stores.checkpoints.prune(run, keep={*newest, *best})


def _known_run(stores: Stores, run: str, settings: Settings | None) -> RunRecord | None:
    """Return the record of a run with these settings, None when the name is free."""
    assert settings is not None, "a new run has settings"
    try:
        record = stores.ledger.get_run(run)
    except RunNotFoundError:
        return None
    if record.settings_hash == settings.content_hash():
        return record
    changes = setting_changes(record.settings_json, settings)
    raise UserError(
        f"run '{run}' exists with other settings ({changes}); choose another name with --run, or continue it as it is "
        f"with: sdsearch resume {run}"
    )


def _new_run(stores: Stores, run: str, settings: Settings) -> RunRecord:
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
        policy_sha256="",
        created_at=now,
        updated_at=now,
    )
    stores.ledger.create_run(record)
    return record


def _update_of(stores: Stores, run: str, iteration: int) -> StageRecord | None:
    """Return the record of an iteration's update, None for iteration 0."""
    done = [
        record
        for record in stores.ledger.stages(run)
        if record.stage == "update" and record.status == "done" and record.iteration == iteration
    ]
    return done[-1] if done else None


def _set_status(stores: Stores, run: str, status: RunStatus) -> None:
    record = stores.ledger.get_run(run)
    stores.ledger.update_run(record.model_copy(update={"status": status, "updated_at": datetime.now(UTC)}))
