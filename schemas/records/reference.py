"""A learning curve that comes with the program: what a user's own run is shown beside."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Record
from schemas.records.evaluation import EvaluationReport


class ReferenceRun(Record):
    """The evaluations of one run."""

    seed: int = Field(description="Its seed.")
    evaluations: tuple[EvaluationReport, ...] = Field(description="Ordered by updates done, then mode.")


class ReferenceCurve(Record):
    """Runs that a run with the same settings, but for the method, can be compared with."""

    title: str = Field(description="What the method is called.")
    config: str = Field(description="The settings that the runs had.")
    made_with: str = Field(description="The commands that made it.")
    code_version: str = Field(description="Version of the program that made it.")
    comparable_hash: str = Field(description="Hash of what must be equal for a comparison.")
    runs: tuple[ReferenceRun, ...] = Field(min_length=1, description="One run a seed.")
