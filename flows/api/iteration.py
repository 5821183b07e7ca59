"""One iteration of a run: its rows as data frames, its records, its credit, and its loss computed again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from flows.api.frames import read_frame
from schemas.base import Record
from schemas.commands import command
from schemas.errors import UserError
from schemas.records.hindsight import HindsightBlock
from schemas.records.ledger import StageKey, StageName, StageRecord
from schemas.records.retry import RetriedGroup
from schemas.records.rollout import Group
from schemas.records.score import Score
from schemas.records.teacher import QueryCredit, TeacherTargets
from schemas.records.update import UpdateReport
from storage.database.stage_rows import file_of, has_file
from storage.storage import Storage

if TYPE_CHECKING:
    import pandas

    from flows.api.method import Loss, Teacher
    from flows.api.workspace import Run

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, repr=False)
class Iteration:
    """An iteration of a run; made by `Run.iteration`."""

    run: Run
    number: int

    def frame(self, table: str = "v_rollouts") -> pandas.DataFrame:
        """Return the iteration's rows of a table or view, such as v_rollouts, v_queries, v_groups, v_token_credit.

        Raises UserError for a name that is none, DatabaseBusyError when another process keeps the database for more
        than a minute.

        Examples:
            >>> it = sdsearch.open_run("workspace", "first").iteration(3)
            >>> it.frame("v_rollouts").shape[0], it.frame("v_groups").shape[0]
            (8, 2)
        """
        return read_frame(self._storage, table, self.run.name, self.number)

    def records(self) -> Records:
        """Return the records of the iteration's stages; each is read from its file when it is first asked for.

        Examples:
            >>> records = sdsearch.open_run("workspace", "first").iteration(3).records()
            >>> len(records.groups), len(records.groups[0].rollouts), len(records.scores), len(records.blocks)
            (2, 4, 8, 2)
            >>> records.update.policy_version
            3
        """
        return Records(self._storage, self.run.name, self.number)

    def credit(self, group: str | None = None) -> list[QueryCredit]:
        """Return what the teacher says of each distilled token: of one group, or of all.

        A record holds the token, the log-probabilities that teacher and student give it (nats), and the Jensen-Shannon
        divergence of their distributions there. Empty while distillation warms up. Raises UserError for a group that
        the iteration does not have.

        Examples:
            >>> it = sdsearch.open_run("workspace", "first").iteration(3)
            >>> group = it.records().groups[0]
            >>> {token.group_id for token in it.credit(group.id)} <= {group.id}
            True
        """
        records = self.records()
        if group is None:
            return records.credit
        self._check_group(records, group)
        return [token for token in records.credit if token.group_id == group]

    def teacher(self) -> Teacher:
        """Return what the teacher stage stored: credit, targets and the teacher's distributions."""
        from flows.api.method import Teacher
        from sdsearch.credit.teacher import TargetTensors

        records = self.records()
        stored = self._storage.artifacts.read_tensors(file_of(records.stage("teacher"), "distributions"))
        return Teacher(records.targets, records.credit, TargetTensors(stored["ids"], stored["logprobs"]))

    def loss(self, group: str | None = None) -> Loss:
        """Compute the loss again from the stored records, with the weights that sampled the iteration.

        Without a group it is the loss of the iteration's first optimiser step, as the update reported it (on the same
        machine with `model.torch_threads` threads to the bit, else within 1e-5 of it). With one it is the loss of that
        group alone, as if it were a step of its own. Loads torch and the policy. Raises UserError when those weights
        are not kept.

        Examples:
            >>> it = sdsearch.open_run("workspace", "first").iteration(3)
            >>> abs(it.loss().loss - it.records().update.steps[0].loss) < 1e-5
            True
        """
        from flows.api.method import compute_loss, loss_of_first_step

        records = self.records()
        groups, alpha = records.groups, self._alpha()
        policy = self.run.policy(groups[0].policy_version)
        scores, retried = [*records.scores, *records.retry_scores], records.retries
        if group is None:
            return loss_of_first_step(
                policy, groups, scores, self.teacher(), iteration=self.number, alpha=alpha, retried=retried
            )
        self._check_group(records, group)
        own = [each for each in groups if each.id == group]
        retried = [each for each in retried if each.group_id == group]
        return compute_loss(policy, own, scores, self.teacher(), alpha=alpha, retried=retried)

    @property
    def _storage(self) -> Storage:
        return self.run._storage

    def _alpha(self) -> float:
        """Return L_SD's weight in the first optimiser step; before the update is done, what the settings plan."""
        key = StageKey(run=self.run.name, iteration=self.number, stage="update")
        is_done = self._storage.ledger.history(key).done is not None
        return self.records().update.steps[0].alpha if is_done else self.run.settings.alpha_at(self.number)

    def _check_group(self, records: Records, group: str) -> None:
        known = [each.id for each in records.groups]
        if group not in known:
            raise UserError(
                f"iteration {self.number} of run '{self.run.name}' has no group '{group}'; it has {len(known)}: "
                f"{', '.join(known[:3])}, …"
            )

    def __repr__(self) -> str:
        return f"Iteration({self.number}, {self.run.name!r})"


class Records:
    """The records that an iteration's stages wrote, checked against their hashes.

    Each raises UserError when its stage is not done, DamagedArtifactError when its file is missing or altered.
    """

    def __init__(self, storage: Storage, run: str, iteration: int) -> None:
        self._storage = storage
        self._run = run
        self._iteration = iteration

    @cached_property
    def groups(self) -> list[Group]:
        """The sampled groups, with their rollouts, turn by turn and token by token."""
        return self._read("sample", "groups", Group)

    @cached_property
    def scores(self) -> list[Score]:
        """Each rollout's score, reward and advantage."""
        return self._read("score", "scores", Score)

    @cached_property
    def retries(self) -> list[RetriedGroup]:
        """The retries of groups without a CORRECT rollout; none where rollout.retries is 0."""
        return self._read("sample", "retries", RetriedGroup) if self._has_retries else []

    @cached_property
    def retry_scores(self) -> list[Score]:
        """Each retry's score, reward and advantage."""
        return self._read("score", "retry_scores", Score) if self._has_retries else []

    @property
    def _has_retries(self) -> bool:
        return has_file(self.stage("sample"), "retries")

    @cached_property
    def blocks(self) -> list[HindsightBlock]:
        """The groups' hindsight blocks; none when distillation is off."""
        return self._read("hindsight", "blocks", HindsightBlock)

    @cached_property
    def targets(self) -> list[TeacherTargets]:
        """Each distilled rollout's rows in the teacher's stored distributions."""
        return self._read("teacher", "targets", TeacherTargets)

    @cached_property
    def credit(self) -> list[QueryCredit]:
        """What the teacher says of each distilled token."""
        return self._read("teacher", "credit", QueryCredit)

    @cached_property
    def update(self) -> UpdateReport:
        """What the update did, step by step."""
        (report,) = self._read("update", "update", UpdateReport)
        return report

    def stage(self, stage: StageName) -> StageRecord:
        """Return the attempt that did a stage; UserError when there is none."""
        key = StageKey(run=self._run, iteration=self._iteration, stage=stage)
        history = self._storage.ledger.history(key)
        if history.done is not None:
            return history.done
        last = history.attempts[-1] if history.attempts else None
        how = f"its last attempt is {last.status}{f': {last.error}' if last.error else ''}" if last else "not begun"
        resume = command("resume", self._run, workspace=self._storage.workspace.root)
        raise UserError(
            f"the stage '{stage}' of iteration {self._iteration} of run '{self._run}' is not done ({how}); choose an "
            f"iteration that has it, or, when the run trains and is not finished, continue with: {resume}"
        )

    def _read(self, stage: StageName, name: str, record_type: type[R]) -> list[R]:
        ref = file_of(self.stage(stage), name)
        self._storage.artifacts.verify(ref)
        return self._storage.artifacts.read_records(ref, record_type)

    def __repr__(self) -> str:
        names = "groups, scores, retries, retry_scores, blocks, targets, credit, update"
        return f"Records of iteration {self._iteration} of run {self._run!r}: {names}"
