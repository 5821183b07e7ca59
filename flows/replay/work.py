"""A replay: the hindsight and teacher stages of a run's stored iterations, done again under other settings.

Nothing is sampled and nothing is trained. The rollouts and their scores are adopted from the source run, and so is
every stage whose inputs are the same there.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version

from rich.console import Console

from flows.console.errors import UserError
from flows.replay.plan import ReplayPlan, check_replayable, plan_of
from flows.replay.show import ReplayReporter, print_comparison
from flows.run.inputs import check_source_model
from flows.run.live import Runtime, open_runtime
from flows.run.progress import Reporter
from flows.run.status import tracked_status
from flows.settings.load import describe_differences
from flows.training.stages import build_hindsight, compute_teacher
from schemas.records.ledger import RunRecord
from storage.errors import RunNotFoundError
from storage.runs.lock import RunLock
from storage.storage import Storage


def replay_and_print(plan: ReplayPlan, storage: Storage, console: Console) -> None:
    """Do what of a replay is not done yet, and print its figures beside the source's; errors as of `replay`."""
    replay(plan, storage, ReplayReporter(plan, storage.ledger.get_run(plan.source), console))
    print_comparison(plan.run, storage.database, console)


def replay(plan: ReplayPlan, storage: Storage, reporter: Reporter) -> None:
    """Do what of a replay is not done yet.

    Raises UserError when an iteration cannot be replayed or the name belongs to another run, RunLockedError when
    another process has it, DamagedArtifactError when a file of the source is missing or altered.
    """
    lock = RunLock(storage.workspace, plan.run)
    with lock:
        known = _find_replay(storage, plan)
        if known is None or known.status != "done":
            check_replayable(storage, plan)
        with open_runtime(plan.settings, plan.run, storage, reporter, lock, plan.source) as runtime:
            is_in_folder = plan.settings.model.tuning == "lora" or plan.first == 1
            check_source_model(runtime, with_weights=is_in_folder)
            if known is None:
                storage.create_run(_new_replay(plan))
            # The comparison needs the source's rows, which a database that was made again may lack.
            storage.sync.catch_up(plan.source)
            with tracked_status(storage, plan.run):
                reporter.run_started(plan.run, plan.settings, plan.first)
                for iteration in plan.iterations:
                    _replay_iteration(runtime, iteration)
                    _count(storage, plan, iteration)


def _replay_iteration(runtime: Runtime, iteration: int) -> None:
    sampled = runtime.adopt("sample", iteration)
    scored = runtime.adopt("score", iteration)
    blocks = build_hindsight(runtime.run, iteration, sampled, scored)
    compute_teacher(runtime.run, iteration, sampled, blocks)
    runtime.forget_records()
    runtime.reporter.iteration_done(iteration, {})


def _find_replay(storage: Storage, plan: ReplayPlan) -> RunRecord | None:
    """Return the record of this replay, None when the name is free; UserError when it belongs to another run."""
    try:
        record = storage.ledger.get_run(plan.run)
    except RunNotFoundError:
        return None
    if record.replay_of != plan.source:
        kind = "an evaluation" if record.evaluation_of else "a run that trains"
        what = kind if record.replay_of is None else f"a replay of run '{record.replay_of}'"
        raise UserError(f"run '{plan.run}' is {what}; choose another name with --run")
    if plan_of(record) != plan:
        known = plan_of(record)
        changes = describe_differences(record.settings_json, plan.settings)
        raise UserError(
            f"replay '{plan.run}' exists with other iterations or settings (iterations: {known.first}:{known.last} -> "
            f"{plan.first}:{plan.last}{', ' if changes else ''}{changes}); choose another name with --run"
        )
    return record


def _new_replay(plan: ReplayPlan) -> RunRecord:
    now = datetime.now(UTC)
    return RunRecord(
        run=plan.run,
        status="running",
        settings_json=plan.settings.model_dump_json(),
        settings_hash=plan.settings.content_hash(),
        code_version=version("sdsearch"),
        seed=plan.settings.seed,
        num_iterations=len(plan.iterations),
        iterations_done=0,
        first_iteration=plan.first,
        replay_of=plan.source,
        policy_version=0,
        policy_sha256="",
        created_at=now,
        updated_at=now,
    )


def _count(storage: Storage, plan: ReplayPlan, iteration: int) -> None:
    """Note in the run's record how many iterations are done."""
    record = storage.ledger.get_run(plan.run)
    num_done = iteration - plan.first + 1
    if num_done > record.iterations_done:
        storage.update_run(record.model_copy(update={"iterations_done": num_done, "updated_at": datetime.now(UTC)}))
