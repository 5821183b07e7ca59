"""TensorBoard: scalars and the settings, in a folder of event files for each run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pydantic import PrivateAttr

from flows.settings.show import toml_lines
from flows.tracking.ports import Ended, Opened, Sink, TrackedRun, need_package
from schemas.paths import local_path
from schemas.settings.tracking import TensorBoardSettings


class TensorBoardSink(TensorBoardSettings, Sink):
    """Scalars of every iteration and the settings as a text, in event files that TensorBoard shows."""

    _writer: Any = PrivateAttr(default=None)

    def check(self) -> None:
        """UserError where the package is missing."""
        need_package("tensorboard", "tensorboard")

    def open(self, run: TrackedRun) -> Opened:
        """Begin an event file in the run's folder; TensorBoard knows a run by its folder's name.

        TensorBoard leaves out what earlier files of the folder have of the steps that come again.
        """
        from torch.utils.tensorboard import SummaryWriter

        folder = (local_path(self.folder) if self.folder else run.folder / "tensorboard").absolute() / run.name
        former = [file.name for file in folder.glob("events.out.tfevents.*")]
        is_new = not former
        if any(f"tfevents.{int(time.time())}." in name for name in former):
            time.sleep(1.0)  # TensorBoard reads files in the order of their names, which hold the second they began in.
        self._writer = SummaryWriter(str(folder), purge_step=None if is_new else run.last_step + 1)
        if is_new:
            self._writer.add_text("settings", "".join(f"    {line}\n" for line in toml_lines(run.settings)))
            self._writer.flush()
        # Where the folder was removed, all iterations are written again.
        return Opened(run.name, -1 if is_new else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a scalar for each figure."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, ended: Ended) -> None:
        """Close the event file."""
        self._writer.close()
