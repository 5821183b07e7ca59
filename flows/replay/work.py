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
from flows.run.status import standing
from flows.settings.load import setting_changes
from flows.training.stages import build_hindsight, compute_teacher
from schemas.records.ledger import RunRecord
from storage.errors import RunNotFoundError
from storage.runs.lock import RunLock
from storage.stores import Stores


def replay_and_print(plan: ReplayPlan, stores: Stores, console: Console) -> None:
    """Do what of a replay is not done yet, and print its figures beside the source's; errors as of `replay`."""
    replay(plan, stores, ReplayReporter(plan, stores.ledger.get_run(plan.source), console))
    print_comparison(plan.run, stores.database, console)


def replay(plan: ReplayPlan, stores: Stores, reporter: Reporter) -> None:
    """Do what of a replay is not done yet.

    Raises UserError when an iteration cannot be replayed or the name belongs to another run, RunLockedError when
    another process has it, DamagedArtifactError when a file of the source is missing or altered.
    """
    lock = RunLock(stores.workspace, plan.run)
    with lock:
        known = _known_replay(stores, plan)
        if known is None or known.status != "done":
            check_replayable(stores, plan)
        with open_runtime(plan.settings, plan.run, stores, reporter, lock, plan.source) as runtime:
            is_in_folder = plan.settings.model.tuning == "lora" or plan.first == 1
            check_source_model(runtime, with_weights=is_in_folder)
            if known is None:
                stores.create_run(_new_replay(plan))
            # The comparison needs the source's rows, which a database that was made again may lack.
            stores.index.catch_up(plan.source)
            with standing(stores, plan.run):
                reporter.run_started(plan.run, plan.settings, plan.first)
                for iteration in plan.iterations:
                    _replay_iteration(runtime, iteration)
                    _count(stores, plan, iteration)


def _replay_iteration(runtime: Runtime, iteration: int) -> None:
    sampled = runtime.adopt("sample", iteration)
    scored = runtime.adopt("persist", iteration)
    blocks = build_hindsight(runtime.run, iteration, sampled, scored)
    compute_teacher(runtime.run, iteration, sampled, blocks)
    runtime.forget_records()
    runtime.reporter.iteration_done(iteration, {})


def _known_replay(stores: Stores, plan: ReplayPlan) -> RunRecord | None:
    """Return the record of this replay, None when the name is free; UserError when it belongs to another run."""
    try:
        record = stores.ledger.get_run(plan.run)
    except RunNotFoundError:
        return None
    if record.replay_of != plan.source:
        kind = "an evaluation" if record.evaluation_of else "a run that trains"
        what = kind if record.replay_of is None else f"a replay of run '{record.replay_of}'"
        raise UserError(f"run '{plan.run}' is {what}; choose another name with --run")
    if plan_of(record) != plan:
        known = plan_of(record)
        changes = setting_changes(record.settings_json, plan.settings)
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


def _count(stores: Stores, plan: ReplayPlan, iteration: int) -> None:
    """Note in the run's record how many iterations are done."""
    record = stores.ledger.get_run(plan.run)
    num_done = iteration - plan.first + 1
    if num_done > record.iterations_done:
        stores.update_run(record.model_copy(update={"iterations_done": num_done, "updated_at": datetime.now(UTC)}))
