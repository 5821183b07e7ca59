"""Starts and continues replays for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from flows.console.interrupts import resumable, resume_command
from flows.replay.plan import ReplayPlan, plan_replay
from storage.storage import Storage
from storage.workspace import open_existing


def start_replay(
    source: str, iterations: str, overrides: Sequence[str], run: str | None, folder: Path, console: Console
) -> None:
    """Replay iterations of a run and print what its teacher and the replay's say; done work is not done again.

    Raises UserError and StorageError for what cannot be replayed, before anything is written.
    """
    storage = Storage(open_existing(folder, needs_database=False))
    continue_replay(plan_replay(storage.ledger.get_run(source), iterations, overrides, run), storage, console)


def continue_replay(plan: ReplayPlan, storage: Storage, console: Console) -> None:
    """Do what of a replay is not done yet; Ctrl-C and SIGTERM end it with a hint how to go on."""
    with console.status("loading the libraries"):
        from flows.replay.work import replay_and_print
    with resumable(console, resume_command(plan.run, storage.workspace.root)):
        replay_and_print(plan, storage, console)
