"""A run that goes wrong says so: once a kind, and as `alarms.on_alarm` has it, ends or goes on from its best policy.

Only files of done stages are read, of the iterations up to the one that ended: a run that is resumed sees the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import assert_never

from flows.console.errors import UserError
from flows.run.live import Runtime
from flows.run.stage_files import StageFiles
from flows.training.rollback import best_version, num_rollbacks
from flows.training.said import Said
from schemas.records.evaluation import EvaluationAnswer
from schemas.records.ledger import RunRecord, RunWarning, StageKey
from schemas.records.score import Score
from schemas.records.update import UpdateReport
from sdsearch.training.alarms import ALARMS, Evaluated, Vitals, find_collapses, find_fall
from storage.database.stage_rows import answers_file
from storage.errors import DamagedArtifactError


class RollbackError(Exception):
    """The run has gone wrong, and its settings want it to go on from its best policy."""

    def __init__(self, alarm: RunWarning) -> None:
        super().__init__(alarm.text)
        self.alarm = alarm


class Alarms:
    """Looks at a run's evaluations and iterations as they are done.

    tell: is handed each sentence the first time it holds; alarmed: the alarm itself.
    """

    def __init__(
        self,
        runtime: Runtime,
        files: StageFiles,
        record: RunRecord,
        tell: Callable[[str], None],
        alarmed: Callable[[RunWarning], None],
    ) -> None:
        self._settings = runtime.settings
        self._plan = runtime.settings.alarms
        self._run = record.run
        self._first = record.first_iteration
        self._storage = runtime.storage
        self._files = files
        self._said = Said(runtime.storage, record.run, lambda alarm: tell(f"alarm: {alarm.text}"), alarmed)
        self._vitals: dict[int, Vitals] = {}
        self._evaluations: dict[int, Evaluated] = {}

    def look_at(self, iteration: int) -> None:
        """Look at an iteration that is done.

        Raises UserError where the settings say that the run ends, RollbackError where it goes on from its best policy;
        so does a run that is resumed after it.
        """
        for alarm in self._find(iteration):
            if self._said.find(alarm.kind) is None:
                self._said.say(alarm)
        if (said := self._said.find(*ALARMS)) is not None:
            self._act(said)

    def _find(self, iteration: int) -> list[RunWarning]:
        window = self._plan.window
        found = []
        if self._settings.evaluates_after(iteration) and (fall := find_fall(self._evaluated(iteration), self._plan)):
            found.append(fall)
        if iteration >= self._first + window:
            first = self._vitals_of(range(self._first, self._first + window))
            last = self._vitals_of(range(iteration - window + 1, iteration + 1))
            if first and last:
                found += find_collapses(first, last, iteration, self._plan)
        return found

    def _act(self, alarm: RunWarning) -> None:
        match self._plan.on_alarm:
            case "warn":
                return
            case "stop":
                raise _ended(self._run, alarm, "alarms.on_alarm is 'stop'")
            case "rollback" if num_rollbacks(self._run) >= self._plan.max_rollbacks:
                raise _ended(self._run, alarm, f"alarms.max_rollbacks is {self._plan.max_rollbacks}")
            case "rollback":
                # The best policy may be the last: then there is nothing left to train.
                if best_version(self._storage, self._run) < self._settings.iterations:
                    raise RollbackError(alarm)
            case unknown:
                assert_never(unknown)

    def _evaluated(self, last: int) -> list[Evaluated]:
        """Return the run's evaluations up to an iteration, oldest first; what cannot be read is left out."""
        mode = "greedy" if "greedy" in self._settings.evaluation.modes else self._settings.evaluation.modes[0]
        start = self._first - 1
        for updates in range(start, last + 1):
            if updates in self._evaluations or not (updates == start or self._settings.evaluates_after(updates)):
                continue
            record = self._storage.ledger.done(StageKey(run=self._run, iteration=updates, stage="evaluate"))
            try:
                answers = self._files.read(record, answers_file(mode, 0), EvaluationAnswer) if record else []
            except DamagedArtifactError:
                continue
            if answers:
                self._evaluations[updates] = Evaluated(updates, {each.question_key: each.em for each in answers})
        return [self._evaluations[updates] for updates in sorted(self._evaluations)]

    def _vitals_of(self, iterations: Sequence[int]) -> list[Vitals]:
        """Return the figures of iterations; none where a file of one of them cannot be read."""
        for iteration in iterations:
            if iteration not in self._vitals:
                try:
                    self._vitals[iteration] = self._read(iteration)
                except DamagedArtifactError:
                    return []
        return [self._vitals[iteration] for iteration in iterations]

    def _read(self, iteration: int) -> Vitals:
        key = StageKey(run=self._run, iteration=iteration, stage="score")
        scored, updated = self._storage.ledger.done(key), self._storage.ledger.done(_update(key))
        if scored is None or updated is None:
            raise DamagedArtifactError(f"iteration {iteration} of run '{self._run}' lacks a stage")
        scores = self._files.read(scored, "scores", Score)
        (report,) = self._files.read(updated, "update", UpdateReport)
        entropies = [step.entropy for step in report.steps if step.entropy is not None]
        num_rollouts = sum(step.num_rollouts for step in report.steps)
        return Vitals(
            valid_share=fmean(score.valid_format for score in scores),
            tokens_per_rollout=sum(step.num_completion_tokens for step in report.steps) / num_rollouts,
            searches_per_rollout=fmean(len(score.golden) for score in scores),
            entropy=fmean(entropies) if entropies else None,
            sampler_gap=report.steps[0].sampler_kl,
        )


def _update(key: StageKey) -> StageKey:
    return key.model_copy(update={"stage": "update"})


def _ended(run: str, alarm: RunWarning, because: str) -> UserError:
    return UserError(
        f"{alarm.text}; run '{run}' ends here after {alarm.iteration} updates, since {because}: continue it with --run "
        f"{run} --set alarms.on_alarm=warn"
    )
