"""A replay: the hindsight and teacher stages of a run's stored iterations, done again under other settings.

Nothing is sampled and nothing is trained. The rollouts and their scores are adopted from the source run, and so is
every stage whose inputs are the same there.
"""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Console

from flows.plugins.check import check_sinks
from flows.replay.plan import ReplayPlan, check_replayable
from flows.replay.show import ReplayReporter, print_comparison
from flows.run.inputs import check_source_model
from flows.run.live import open_runtime
from flows.run.progress import Reporter
from flows.run.records import check_settings, find_known, new_run
from flows.run.status import tracked_status
from flows.tracking.tracking import open_tracking
from flows.training.iteration import Training
from flows.training.stages.hindsight import build_hindsight
from flows.training.stages.teacher import compute_teacher
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
        known = find_known(storage, plan.run, lambda kind: kind == plan.kind, "--run")
        if known is not None:
            check_settings(known, plan.settings, "--run")
        if known is None or known.status != "done":
            check_replayable(storage, plan)
        with open_runtime(plan.settings, plan.run, storage, reporter, plan.source) as live:
            check_sinks(plan.settings)
            asks_start = plan.settings.distillation.teacher != "live"
            check_source_model(live, 0 if asks_start else plan.first - 1)
            if known is None:
                storage.create_run(new_run(plan.run, plan.settings, plan.kind))
            # The comparison needs the source's rows, which a database that was made again may lack.
            storage.sync.catch_up(plan.source)
            num_done = known.iterations_done if known else 0
            training = Training.over(live, lock, plan.first - 1 + num_done)
            record = storage.ledger.get_run(plan.run)
            with open_tracking(plan.settings, record, storage, reporter) as tracking, tracked_status(storage, plan.run):
                reporter.run_started(plan.run, plan.settings, plan.first)
                for iteration in plan.iterations:
                    _replay_iteration(training, iteration)
                    _count(storage, plan, iteration)
                    tracking.show(iteration)


def _replay_iteration(training: Training, iteration: int) -> None:
    live, runner = training.live, training.runner
    sampled = runner.adopt("sample", iteration)
    scored = runner.adopt("score", iteration)
    blocks = build_hindsight(live, runner, iteration, sampled, scored)
    compute_teacher(training.trainer, runner, iteration, sampled, blocks)
    runner.files.forget()
    runner.reporter.iteration_done(iteration, {})


def _count(storage: Storage, plan: ReplayPlan, iteration: int) -> None:
    """Note in the run's record how many iterations are done."""
    record = storage.ledger.get_run(plan.run)
    num_done = iteration - plan.first + 1
    if num_done > record.iterations_done:
        storage.update_run(record.model_copy(update={"iterations_done": num_done, "updated_at": datetime.now(UTC)}))
