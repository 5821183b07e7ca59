"""Settings of the trackers that a run's figures go to; none of them changes what is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Positive, Section
from schemas.names import Name
from schemas.plugins import Names, Options


class TensorBoardSettings(Section):
    """TensorBoard (`pip install 'sdsearch[tensorboard]'`)."""

    folder: str = Field(
        default="",
        description="Folder of the event files, with a folder for each run; empty: tracking/tensorboard in the "
        "workspace.",
    )


class WandbSettings(Section):
    """Weights & Biases (`pip install 'sdsearch[wandb]'`)."""

    project: Name = Field(default="sdsearch", description="Project of the run.")
    entity: str = Field(default="", description="User or team; empty: the account's default.")
    mode: Literal["offline", "online"] = Field(
        default="offline",
        description="'offline' writes files, which `wandb sync` uploads; 'online' sends figures, settings and rollouts "
        "to the server while the run works, and needs `wandb login` or WANDB_API_KEY.",
    )
    folder: str = Field(
        default="", description="Folder in which W&B makes its folder 'wandb'; empty: tracking in the workspace."
    )


class MlflowSettings(Section):
    """MLflow (`pip install 'sdsearch[mlflow]'`)."""

    uri: str = Field(
        default="",
        description="Tracking URI, such as http://host:5000 or sqlite:///mlflow.db; empty: tracking/mlflow.db in the "
        "workspace.",
    )
    experiment: str = Field(default="sdsearch", min_length=1, description="Experiment of the run.")


class TrackioSettings(Section):
    """Trackio (`pip install 'sdsearch[trackio]'`)."""

    project: Name = Field(default="sdsearch", description="Project of the run.")
    folder: str = Field(
        default="",
        description="Folder of its databases; empty: TRACKIO_DIR, or else tracking/trackio in the workspace.",
    )


class TrackingSettings(Section):
    """Where a run's figures go besides the database; no stage reads these settings, so they may change at any time."""

    sinks: tuple[Annotated[str, Names("sink")], ...] = Field(
        default=(), description="Trackers that get the figures: of these, each at most once (ours)."
    )
    rollouts: int = Field(
        default=8,
        ge=0,
        description="Rollouts of each iteration that go to trackers which show them (W&B, Trackio): those of the "
        "groups with the largest spread of rewards.",
    )
    max_waiting: Positive = Field(
        default=64, description="Iterations that may wait for a slow tracker; one more, and it is off for the run."
    )
    close_timeout_s: float = Field(
        default=15.0, gt=0, description="Longest wait for all trackers together when a run ends, seconds."
    )
    tensorboard: TensorBoardSettings = TensorBoardSettings()
    wandb: WandbSettings = WandbSettings()
    mlflow: MlflowSettings = MlflowSettings()
    trackio: TrackioSettings = TrackioSettings()
    options: dict[str, Options] = Field(
        default={}, description="The settings of trackers that are plugins, a table for each, by the name in sinks."
    )

    def options_of(self, sink: str) -> Options:
        """Return the options that a tracker is made with: its own table, or a plugin's."""
        own = getattr(self, sink, None) if sink in SHIPPED else None
        return own.model_dump(mode="json") if isinstance(own, Section) else self.options.get(sink, {})


SHIPPED = ("tensorboard", "wandb", "mlflow", "trackio")
"""Trackers that come with the program; each has a table of its own."""
