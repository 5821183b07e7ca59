"""`sdsearch resume`: goes on with a run of any kind where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from rich.console import Console

from flows.console.errors import UserError
from flows.console.terminal import print_line
from flows.evaluation.launch import continue_evaluation
from flows.evaluation.plan import plan_of as evaluation_plan_of
from flows.replay.launch import continue_replay
from flows.replay.plan import plan_of as replay_plan_of
from flows.training.job import open_job
from flows.training.launch import carry_out
from schemas.records.run_kind import EvaluationKind, ForkKind, ReplayKind, TrainingKind
from storage.runs.lock import take_over
from storage.storage import Storage
from storage.workspace import open_existing


def continue_run(
    run: str,
    folder: Path,
    console: Console,
    *,
    use_prefect: bool,
    from_silent: bool = False,
    num_workers: int = 1,
) -> None:
    """Go on with a run at the stage where it stopped; RunNotFoundError when there is none of the name.

    from_silent: take it from a process on another machine whose heartbeat stopped; RunLockedError when it lives.
    num_workers: processes that answer an evaluation's questions; UserError for more than one and any other run.
    """
    workspace = open_existing(folder, needs_database=False)
    storage = Storage(workspace)
    record = storage.find_run(run)
    if num_workers > 1 and not isinstance(record.kind, EvaluationKind):
        raise UserError(
            f"--workers {num_workers} is for evaluations, and run '{run}' is {record.kind.title}; leave --workers out "
            "(distributed.ranks says over how many processes a run trains)"
        )
    if from_silent and (holder := take_over(workspace, run)) is not None:
        print_line(console, f"taken over from process {holder.pid} on {holder.host}")
    match record.kind:
        case EvaluationKind():
            continue_evaluation(evaluation_plan_of(record), workspace, console, num_workers)
        case ReplayKind():
            continue_replay(replay_plan_of(record), storage, console)
        case TrainingKind() | ForkKind():
            carry_out(open_job(run, folder), console, use_prefect=use_prefect)
        case unknown:
            assert_never(unknown)
