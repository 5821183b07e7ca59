"""Weights & Biases: figures, settings and a table of rollouts; offline, or to a server."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import PrivateAttr

from flows.tracking.ports import Ended, Opened, Sink, Trace, TrackedRun, need_package
from schemas.errors import UserError
from schemas.paths import local_path
from schemas.settings.tracking import WandbSettings

_FLUSH_S: Final = 0.5
"""How often W&B writes its file: what came after the last time is lost where the process is killed."""


class WandbSink(WandbSettings, Sink):
    """Figures of every iteration, the settings as the run's config, and a table of rollouts, in Weights & Biases."""

    _run: Any = PrivateAttr(default=None)

    def check(self) -> None:
        """UserError where the package is missing, or online the key."""
        need_package("wandb", "wandb")
        if self.mode == "online" and not os.environ.get("WANDB_API_KEY"):
            import wandb

            # W&B would ask for it on the terminal, beside the run.
            if not wandb.api.api_key:
                raise UserError(
                    "tracking.sinks 'wandb': tracking.wandb.mode is 'online', and there is no API key; log in with: "
                    "wandb login, or set WANDB_API_KEY, or tracking.wandb.mode = 'offline'"
                )

    def open(self, run: TrackedRun) -> Opened:
        """Begin a run, or go on with the run of the same id; offline each start has a folder of its own."""
        if self.mode == "offline":  # Nothing at all leaves the machine then, reports of W&B's own errors neither.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._run = wandb.init(
            project=self.project,
            entity=self.entity or None,
            name=run.name,
            id=run.tracker_id,
            resume="allow",
            mode=self.mode,
            dir=str(local_path(self.folder) if self.folder else run.folder),
            config=run.settings,
            notes=run.kind,
            reinit="create_new",
            # Its own output, the console's text, the code and the machine's load are no part of what is tracked.
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                disable_git=True,
                x_disable_stats=True,
                x_transaction_log_flush_interval=_FLUSH_S,
            ),
        )
        self._run.define_metric("*", step_metric="iteration")
        # Online the server says what it has; offline nobody does.
        last = int(self._run.step) - 1
        return Opened(str(self._run.id), last if self.mode == "online" and self._run.resumed else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a row of W&B's history, with the rollouts that came before."""
        self._run.log({"iteration": step, **values}, step=step, commit=True)

    def traces(self, step: int, traces: Sequence[Trace]) -> None:
        """Add a table with a row a rollout to the iteration's history."""
        import wandb

        names = list(traces[0].facts)
        rows = [
            [trace.rollout_id, "".join(message.content for message in trace.messages[1:]), *trace.facts.values()]
            for trace in traces
        ]
        self._run.log({"rollouts": wandb.Table(columns=["rollout_id", "text", *names], data=rows)}, step=step)

    def close(self, ended: Ended) -> None:
        """Finish the run; W&B shows one that failed as such."""
        self._run.finish(exit_code=0 if ended == "done" else 1)
