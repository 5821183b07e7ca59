"""Starts and continues evaluations for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from flows.console.errors import UserError
from flows.console.interrupts import resumable, resume_command
from flows.evaluation.plan import EvaluationPlan, Request, plan_model, plan_run
from storage.storage import Storage
from storage.workspace import Workspace, open_existing


def start_evaluation(
    run: str | None,
    policy: str | None,
    config: str,
    overrides: Sequence[str],
    request: Request,
    folder: Path,
    console: Console,
    num_workers: int = 1,
) -> None:
    """Evaluate a run's current policy, or a model with the settings of `config`, and print the table.

    Raises UserError when both are named and for what cannot be met, RunNotFoundError for a run that is not there.
    """
    if run is None:
        continue_evaluation(
            plan_model(policy, config, overrides, request), Workspace.open(folder), console, num_workers
        )
        return
    if policy is not None:
        raise UserError("evaluate takes --run NAME or --policy MODEL; leave one of them out")
    workspace = open_existing(folder, needs_database=False)
    continue_evaluation(plan_run(Storage(workspace).find_run(run), overrides, request), workspace, console, num_workers)


def continue_evaluation(plan: EvaluationPlan, workspace: Workspace, console: Console, num_workers: int = 1) -> None:
    """Do what of an evaluation is not done yet; Ctrl-C and SIGTERM end it with a hint how to go on."""
    with console.status("loading the libraries"):
        from flows.evaluation.work import evaluate_and_print
    with resumable(console, resume_command(plan.run, workspace.root, num_workers)):
        evaluate_and_print(plan, Storage(workspace, plan.settings.storage.database_deadline_s), console, num_workers)


def start_comparison(
    names: tuple[str, str], despite: str | None, others: Sequence[str], folder: Path, console: Console
) -> None:
    """Print two evaluations side by side; `others` are options that were given beside, which is refused."""
    if others:
        raise UserError(f"--compare reads evaluations that were made before; leave {', '.join(others)} out")
    with console.status("loading the libraries"):
        from flows.evaluation.compare import compare_and_print
    compare_and_print(*names, despite, Storage(open_existing(folder, needs_database=False)), console)
