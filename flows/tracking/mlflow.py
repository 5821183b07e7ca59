"""MLflow: figures and settings, in a SQLite file or at a tracking server."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any, Final

from pydantic import PrivateAttr

from flows.settings.layers import leaves
from flows.tracking.ports import Ended, Opened, Sink, TrackedRun, need_package
from schemas.commands import as_toml
from schemas.settings.tracking import MlflowSettings

_STATUS: Final[Mapping[Ended, str]] = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_ONE_BATCH: Final = 100
"""The most parameters that a request may have."""
_LONGEST: Final = 6000
"""The longest value of a parameter."""


class MlflowSink(MlflowSettings, Sink):
    """Figures of every iteration and the settings as parameters, in MLflow."""

    _client: Any = PrivateAttr(default=None)
    _id: str = PrivateAttr(default="")

    def check(self) -> None:
        """UserError where the package is missing."""
        need_package("mlflow", "mlflow")

    def open(self, run: TrackedRun) -> Opened:
        """Create a run in the experiment, or open the one of this id again."""
        # MLflow reports to its makers what is called, unless it is told not to.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # A new database is no news for whoever watches a run.
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=self.uri or f"sqlite:///{run.folder / 'mlflow.db'}")
        if run.tracker_id is not None:
            self._id = run.tracker_id
            self._client.update_run(self._id, status="RUNNING")
            history = self._client.get_metric_history(self._id, "iteration")
            return Opened(self._id, max((item.step for item in history), default=-1))
        created = self._client.create_run(
            self._experiment(run), run_name=run.name, tags={"sdsearch.run": run.name, "sdsearch.kind": run.kind}
        )
        self._id = str(created.info.run_id)
        self._log_settings(run.settings)
        return Opened(self._id, -1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the figures in one transaction."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        named = {"iteration": float(step), **values}
        self._client.log_batch(self._id, metrics=[Metric(name, value, now_ms, step) for name, value in named.items()])

    def close(self, ended: Ended) -> None:
        """Set the run's status."""
        self._client.set_terminated(self._id, _STATUS[ended])

    def _experiment(self, run: TrackedRun) -> str:
        known = self._client.get_experiment_by_name(self.experiment)
        if known is not None:
            return str(known.experiment_id)
        # Without a place of their own, artifacts would go to the current folder.
        place = None if self.uri else (run.folder / "mlflow-artifacts").as_uri()
        return str(self._client.create_experiment(self.experiment, artifact_location=place))

    def _log_settings(self, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [
            Param(name.replace(":", "."), ("" if value is None else as_toml(value))[:_LONGEST])
            for name, value in leaves(settings)
        ]
        for start in range(0, len(params), _ONE_BATCH):
            self._client.log_batch(self._id, params=params[start : start + _ONE_BATCH])
