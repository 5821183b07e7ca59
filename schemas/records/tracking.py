"""Which runs of trackers a run's figures go to, and how far they have gone."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Record


class TrackerRun(Record):
    """A run as a tracker has it."""

    id: str = Field(description="The tracker's own id of the run; a resumed run goes on with it.")
    last_step: int = Field(ge=-1, description="The last iteration that it got; -1 for none.")


class RunTracking(Record):
    """What `tracking.json` in a run's folder holds."""

    trackers: dict[str, TrackerRun] = Field(default={}, description="By the name in tracking.sinks.")
