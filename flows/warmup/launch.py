"""Starts and continues warm-ups for the command line, with Prefect or without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from flows.console.interrupts import resumable
from flows.console.terminal import make_table, print_line
from flows.orchestration.prefect_server import prefect_api
from flows.warmup.plan import WarmupPlan, plan_warmup
from schemas.commands import command
from schemas.records.warmup import WarmupRecord


def warm_up_in_terminal(
    config: str, name: str, overrides: Sequence[str], folder: Path, console: Console, *, use_prefect: bool
) -> None:
    """Warm a model up and print what it does before and after; one that was stopped goes on by the same command."""
    plan = plan_warmup(config, name, overrides, folder)
    words = [config, "--name", name]
    for override in overrides:
        words += ["--set", override]
    again = command("warmup", *words, workspace=plan.storage.workspace.root)
    with resumable(console, again):
        record = _with_prefect(plan, console) if use_prefect else _plainly(plan, console)
    print_warmup(plan, record, console)


def _plainly(plan: WarmupPlan, console: Console) -> WarmupRecord:
    with console.status("loading the libraries"):
        from flows.warmup.work import warm_up
    return warm_up(plan, console)


def _with_prefect(plan: WarmupPlan, console: Console) -> WarmupRecord:
    with prefect_api(plan.storage.workspace) as server:
        from flows.orchestration.warmup_flow import warm_up_as_flow

        print_line(console, f"Prefect server: {server.url.removesuffix('/api')}")
        return warm_up_as_flow(plan, console)


def print_warmup(plan: WarmupPlan, record: WarmupRecord, console: Console) -> None:
    """Print the figures before and after, and the command that trains the policy on."""
    rows = [
        (when, figures.valid_share, figures.em, figures.f1, figures.searches_per_rollout)
        for when, figures in (("before", record.before), ("after", record.after))
        if figures is not None
    ]
    columns = ("policy", "valid format", "EM", "F1", "searches")
    title = f"warm-up {record.name}: {record.steps_done} steps, {record.seconds:.0f} s"
    console.print(make_table(columns, rows, title))
    print_line(console, f"policy: {plan.store.policy}")
    print_line(console, f"train it: {command('train', *plan.start_words, workspace=plan.storage.workspace.root)}")
