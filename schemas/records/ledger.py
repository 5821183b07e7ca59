"""Runs, stages and files: the records of what was done."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, assert_never

from pydantic import Field

from schemas.base import Record
from schemas.records.reports import RetrievalReport, SamplingReport
from schemas.records.run_kind import EvaluationKind, ForkKind, ReplayKind, RunKind, TrainingKind

StageName = Literal["sample", "score", "hindsight", "teacher", "update", "evaluate", "judge"]
STAGES: tuple[StageName, ...] = ("sample", "score", "hindsight", "teacher", "update", "evaluate")
"""The stages of an iteration, in their order."""
KNOWN_STAGES: tuple[StageName, ...] = (*STAGES, "judge")
"""All stages: a judge looks at an evaluation's answers where there is one (evaluation.judge)."""
StageStatus = Literal["running", "done", "failed", "interrupted", "stale"]
RunStatus = Literal["running", "done", "failed", "interrupted"]


class ArtifactRef(Record):
    """A durable file: its place below the workspace and its hash."""

    path: str = Field(description="Relative to the workspace, with forward slashes.")
    sha256: str = Field(description="Of its bytes, as hexadecimal digits.")
    size_bytes: int = Field(ge=0, description="Its length.")


class StageKey(Record):
    """Which stage of which iteration of which run."""

    run: str = Field(description="Name of the run.")
    iteration: int = Field(ge=0, description="Iteration of the run.")
    stage: StageName = Field(description="sample, score, hindsight, teacher, update, evaluate or judge.")


class StageRecord(Record):
    """A row of the ledger: one attempt at a stage."""

    run: str = Field(description="Name of the run.")
    iteration: int = Field(description="Iteration of the run.")
    stage: StageName = Field(description="sample, score, hindsight, teacher, update, evaluate or judge.")
    attempt: int = Field(ge=1, description="1 for the first attempt at this stage of this iteration.")
    status: StageStatus = Field(
        description="running, done, failed, interrupted, or stale: done once, but replaced or its files no "
        "longer verify. The database has the attempts that have ended."
    )
    input_hash: str = Field(description="Hash of the upstream outputs, the settings it reads and the code version.")
    code_hash: str = Field(
        default="", description="Hash of the sources that did the work; empty for those of earlier versions."
    )
    output_hash: str = Field(description="Hash of the output files' hashes; empty unless done.")
    outputs: tuple[ArtifactRef, ...] = Field(
        description="The stage's files: path below the workspace, sha256, size in bytes."
    )
    num_rows: int = Field(ge=0, description="Rows in the stage's own tables of the database.")
    seed: int = Field(description="Seed of the stage.")
    host: str = Field(description="Host that ran it.")
    pid: int = Field(description="Process that ran it.")
    started_at: datetime = Field(description="When the attempt began, UTC.")
    finished_at: datetime | None = Field(
        description="When it ended, UTC; empty while it runs or when its process died."
    )
    duration_s: float = Field(description="Wall-clock seconds; 0 while the stage runs, and when its process died.")
    error: str = Field(description="What went wrong; empty when done.")
    num_ranks: int = Field(default=1, ge=1, description="Processes that did the work together (distributed.ranks).")
    sampling: SamplingReport | None = Field(
        default=None, description="What the vLLM engine did (see v_sampling); empty where none sampled."
    )
    retrieval: RetrievalReport | None = Field(
        default=None,
        description="What the retriever did in the stage (see v_retrieval); empty where nothing is searched.",
    )
    adopted_from: str | None = Field(
        default=None,
        description="The run whose stage this is, files and all; empty where the work was done in this run.",
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

    attempts: tuple[StageRecord, ...] = Field(description="The attempts, in order.")

    @property
    def done(self) -> StageRecord | None:
        """The attempt whose files count; at most one is done."""
        return next((attempt for attempt in self.attempts if attempt.status == "done"), None)

    @property
    def ended(self) -> tuple[StageRecord, ...]:
        """The attempts that are over; the others are in progress, or their process died unheard."""
        return tuple(attempt for attempt in self.attempts if attempt.status != "running")


WarningKind = Literal[
    "no_protocol",
    "no_mixed_group",
    "no_query",
    "no_gradient",
    "nothing_found",
    "em_fell",
    "format_collapsed",
    "length_collapsed",
    "searches_collapsed",
    "entropy_collapsed",
    "sampler_gap_grew",
    "rolled_back",
]


class RunWarning(Record):
    """What was said of a run, once: why nothing can be learnt from it, that it goes wrong, or where it went on."""

    kind: WarningKind = Field(description="What was seen.")
    iteration: int = Field(description="Updates done when it was seen.")
    text: str = Field(description="One line: what was seen, and what to do.")
    value: float | None = Field(default=None, description="The figure of an alarm, such as dev EM.")
    compared_with: float | None = Field(default=None, description="What the figure was before: the best, or at first.")


class RunRecord(Record):
    """One run: its settings and where it stands."""

    run: str = Field(description="Name of the run.")
    status: RunStatus = Field(
        description="running, done, failed or interrupted, as the run itself said last; of a run whose "
        "process was killed it says running, and sdsearch runs, which looks at the lock, says "
        "dead."
    )
    settings_json: str = Field(description="All settings as JSON.")
    settings_hash: str = Field(description="sha256 of the settings, those of trackers left out.")
    code_version: str = Field(description="Version of the program that made the run.")
    seed: int = Field(description="Seed that every random choice is derived from.")
    num_iterations: int = Field(description="Iterations that the run is to have.")
    kind: RunKind = Field(
        description="training, fork, replay (another teacher is asked about stored rollouts) or evaluation (one "
        "version of a policy answers the questions of data sets)."
    )
    iterations_done: int = Field(description="Iterations whose stages are all done.")
    policy_version: int = Field(description="Updates behind the current policy.")
    policy_sha256: str = Field(description="Hash of the current policy's trained tensors.")
    warnings: tuple[RunWarning, ...] = Field(default=(), description="What was said of it, each kind once.")
    created_at: datetime = Field(description="When the run started, UTC.")
    updated_at: datetime = Field(description="When this record last changed, UTC.")

    @property
    def source(self) -> str | None:
        """The run that a fork, a replay or an evaluation builds on; None where there is none."""
        return None if isinstance(self.kind, TrainingKind) else self.kind.source

    @property
    def trains(self) -> bool:
        """Whether it makes new versions of a policy."""
        return isinstance(self.kind, TrainingKind | ForkKind)

    @property
    def first_iteration(self) -> int:
        """1, or where a replay or a fork begins."""
        match self.kind:
            case ForkKind(first_iteration=first) | ReplayKind(first=first):
                return first
            case TrainingKind() | EvaluationKind():
                return 1
            case unknown:
                assert_never(unknown)
