"""Runs, stages and files: the records of what was done."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from schemas.base import Record
from schemas.records.reports import RetrievalReport, SamplingReport

StageName = Literal["sample", "score", "hindsight", "teacher", "update", "evaluate"]
STAGES: tuple[StageName, ...] = ("sample", "score", "hindsight", "teacher", "update", "evaluate")
StageStatus = Literal["running", "done", "failed", "interrupted", "stale"]
RunStatus = Literal["running", "done", "failed", "interrupted"]


class ArtifactRef(Record):
    """A durable file: its place below the workspace and its hash."""

    path: str = Field(description="Relative to the workspace, with forward slashes.")
    sha256: str
    size_bytes: int = Field(ge=0)


class StageKey(Record):
    """Which stage of which iteration of which run."""

    run: str
    iteration: int = Field(ge=0)
    stage: StageName


class StageRecord(Record):
    """A row of the ledger: one attempt at a stage."""

    run: str
    iteration: int
    stage: StageName
    attempt: int = Field(ge=1)
    status: StageStatus
    input_hash: str = Field(description="Hash of the upstream outputs, the settings it reads and the code version.")
    output_hash: str = Field(description="Hash of the output files' hashes; empty unless done.")
    outputs: tuple[ArtifactRef, ...]
    num_rows: int = Field(ge=0, description="Rows in the stage's own tables of the database.")
    seed: int
    host: str
    pid: int
    started_at: datetime
    finished_at: datetime | None = Field(description="None while running.")
    duration_s: float
    error: str = Field(description="Empty unless failed.")
    sampling: SamplingReport | None = Field(
        default=None, description="What the engine did; None where none sampled, or it was the trainer's own model."
    )
    retrieval: RetrievalReport | None = Field(
        default=None, description="What the retriever did; None for stages that do not search."
    )
    adopted_from: str | None = Field(
        default=None, description="The run whose stage this is, files and all; None where the work was done here."
    )

    @property
    def key(self) -> StageKey:
        """Which stage this is an attempt at."""
        return self.key_of(self.stage)

    def key_of(self, stage: StageName) -> StageKey:
        """Return the key of a stage of the same iteration."""
        return StageKey(run=self.run, iteration=self.iteration, stage=stage)


class StageHistory(Record):
    """What `stage.json` beside a stage's files holds: every attempt at the stage, the earliest first."""

    attempts: tuple[StageRecord, ...]

    @property
    def done(self) -> StageRecord | None:
        """The attempt whose files count; at most one is done."""
        return next((attempt for attempt in self.attempts if attempt.status == "done"), None)

    @property
    def ended(self) -> tuple[StageRecord, ...]:
        """The attempts that are over; the others are in progress, or their process died unheard."""
        return tuple(attempt for attempt in self.attempts if attempt.status != "running")


class RunWarning(Record):
    """What was said of a run, once: a reason why nothing can be learnt from it."""

    kind: Literal["no_protocol", "no_mixed_group", "no_query", "no_gradient", "nothing_found"]
    iteration: int = Field(description="Updates done when it was seen.")
    text: str = Field(description="One line: what was seen, and what to do.")


class RunRecord(Record):
    """One run: its settings and where it stands.

    A replay is a run that adopts another's rollouts and trains nothing: it shows them to another teacher. An evaluation
    trains nothing either: it answers the questions of data sets with one version of a policy.
    """

    run: str
    status: RunStatus
    settings_json: str
    settings_hash: str
    code_version: str
    seed: int
    num_iterations: int = Field(description="Iterations asked for.")
    first_iteration: int = Field(default=1, description="1, or where a replay or a fork begins.")
    replay_of: str | None = Field(default=None, description="The run that a replay takes its rollouts from.")
    fork_of: str | None = Field(
        default=None, description="The run whose policy before `first_iteration` a fork goes on from."
    )
    evaluation_of: str | None = Field(
        default=None, description="What a run that only evaluates evaluates: run:NAME or model:PATH."
    )
    iterations_done: int
    policy_version: int
    policy_sha256: str = Field(description="Hash of the current policy's tensors.")
    warnings: tuple[RunWarning, ...] = Field(default=(), description="What was said of it, each kind once.")
    created_at: datetime
    updated_at: datetime
