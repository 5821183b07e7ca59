"""Trackio: figures, settings and rollouts as traces, in a local folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import PrivateAttr

from flows.tracking.ports import Ended, Opened, Sink, Trace, TrackedRun, need_package
from schemas.paths import local_path
from schemas.settings.tracking import TrackioSettings

_FOLDER: Final = "TRACKIO_DIR"


class TrackioSink(TrackioSettings, Sink):
    """Figures of every iteration, the settings as the run's config, and rollouts as traces, in Trackio."""

    _run: Any = PrivateAttr(default=None)

    def check(self) -> None:
        """UserError where the package is missing."""
        need_package("trackio", "trackio")

    def open(self, run: TrackedRun) -> Opened:
        """Begin a run, or go on with the one of this id; where another of its name came later, begin anew."""
        folder = self._folder(run)
        if folder is not None:
            os.environ[_FOLDER] = str(folder)  # Trackio reads it when it is imported, once for a process.
        import trackio
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import TRACKIO_DIR

        if folder is not None and Path(TRACKIO_DIR) != folder:
            raise RuntimeError(f"this process writes to {TRACKIO_DIR} already, and Trackio has one folder a process")
        latest = SQLiteStorage.get_latest_run_record_by_name(self.project, run.name)
        is_known = run.tracker_id is not None and latest is not None and latest["id"] == run.tracker_id
        self._run = trackio.init(
            project=self.project,
            name=run.name,
            resume="must" if is_known else "never",
            config=run.settings,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        figures = SQLiteStorage.get_metric_values(self.project, run.name, "iteration", run_id=self._run.id)
        return Opened(str(self._run.id), max((int(figure["step"]) for figure in figures), default=-1))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the figures to Trackio's own thread, which writes them within half a second."""
        self._run.log({"iteration": step, **values}, step=step)

    def traces(self, step: int, traces: Sequence[Trace]) -> None:
        """Add a trace for each rollout."""
        import trackio

        for number, trace in enumerate(traces):
            messages = [message.model_dump() for message in trace.messages]
            metadata = {"rollout_id": trace.rollout_id, **trace.facts}
            self._run.log({f"rollouts/{number}": trackio.Trace(messages=messages, metadata=metadata)}, step=step)

    def close(self, ended: Ended) -> None:
        """Finish the run: what waits is written."""
        self._run.finish()

    def _folder(self, run: TrackedRun) -> Path | None:
        """Return the folder of the settings or of the workspace; None where the environment names one."""
        if self.folder:
            return local_path(self.folder).absolute()
        return None if os.environ.get(_FOLDER) else run.folder / "trackio"
