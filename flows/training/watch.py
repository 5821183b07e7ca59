"""A run from which nothing can be learnt says so: once, in a line, and as `nothing_learnt.action` has it, ends."""

from __future__ import annotations

from collections.abc import Callable

from flows.console.errors import UserError
from flows.run.live import Runtime
from flows.run.stage_files import StageFiles
from flows.training.said import Said
from schemas.records.evaluation import EvaluationAnswer
from schemas.records.ledger import RunWarning, StageRecord, WarningKind
from sdsearch.evaluation.answering import Asking, fixed_sample, roll_out_once
from sdsearch.training.nothing_learnt import (
    IterationFigures,
    describe_example,
    describe_no_turn,
    find_nothing_learnt,
    got_nothing,
    writes_no_turn,
)
from storage.database.stage_rows import answers_file
from storage.database.sync import WAIT_S
from storage.errors import DatabaseBusyError

_FIGURES = """
    SELECT iteration, num_mixed_groups, num_searches, num_hits, reward_mean, grad_norm
    FROM (
        SELECT iteration, count(*) FILTER (NOT zero_advantage) AS num_mixed_groups
        FROM groups WHERE run = $run GROUP BY iteration
    )
    JOIN (
        SELECT iteration, CAST(sum(len(queries)) AS BIGINT) AS num_searches,
            CAST(sum(num_hits) AS BIGINT) AS num_hits, avg(reward) AS reward_mean
        FROM rollouts WHERE run = $run GROUP BY iteration
    ) USING (iteration)
    JOIN (SELECT iteration, max(grad_norm) AS grad_norm FROM update_metrics WHERE run = $run GROUP BY iteration)
        USING (iteration)
    WHERE iteration BETWEEN $first AND $last ORDER BY iteration
"""


class Watch:
    """Looks at what a run gives to learn from; what it has said is kept in the run's record.

    Each of `tell` is handed each sentence the first time it holds.
    """

    def __init__(self, runtime: Runtime, files: StageFiles, *tell: Callable[[str], None]) -> None:
        self._runtime = runtime
        self._files = files
        self._settings = runtime.settings.nothing_learnt
        self._said = Said(runtime.storage, runtime.run, *(_of_text(each) for each in tell))

    def look_at_start(self, evaluated: StageRecord, version: int) -> None:
        """Look at the first evaluation; an example is rolled out with the weights of `version`, which go on.

        Raises UserError where the settings say that the run ends here, as does `look_at`.
        """
        runtime, plan = self._runtime, self._runtime.settings.evaluation
        mode = plan.modes[0]
        answers = self._files.read(evaluated, answers_file(mode, 0), EvaluationAnswer)
        if not writes_no_turn(answers) or self._has_said("no_protocol"):
            return
        questions = fixed_sample(runtime.questions.of(runtime.evaluated_set), plan.num_questions, plan.seed)
        question = next(q for q, answer in zip(questions, answers, strict=True) if got_nothing(answer))
        (group,) = roll_out_once(
            runtime.rollout_loop(version),
            [question],
            Asking(mode, runtime.settings.rollout.temperature, plan.seed, version),
        )
        runtime.sampler.release()
        turn, template = group.rollouts[0].turns[0], runtime.settings.rollout.template
        text = f"{describe_no_turn(answers)}; {describe_example(question.question, turn, template)}"
        self._say(RunWarning(kind="no_protocol", iteration=evaluated.iteration, text=text))

    def look_at(self, iteration: int) -> None:
        """Look at the last iterations, as many as must be alike."""
        num_alike = self._settings.after_iterations
        last = self._figures(iteration - num_alike + 1, iteration)
        if len(last) < num_alike:
            return
        for warning in find_nothing_learnt(last, self._runtime.settings.distillation):
            if not self._has_said(warning.kind):
                self._say(warning)

    def _figures(self, first: int, last: int) -> list[IterationFigures]:
        """Return the iterations that the database has; none while another process keeps it."""
        storage = self._runtime.storage
        try:
            rows = storage.database.query(
                _FIGURES, {"run": self._runtime.run, "first": first, "last": last}, WAIT_S
            ).to_pylist()
        except DatabaseBusyError:
            return []
        return [IterationFigures(**row) for row in rows]

    def _has_said(self, kind: WarningKind) -> bool:
        """True for what the run's record holds; UserError where it is said again by ending the run again."""
        said = self._said.find(kind)
        if said is not None and self._settings.action == "stop":
            raise _stopped(self._runtime.run, said)
        return said is not None

    def _say(self, warning: RunWarning) -> None:
        self._said.say(warning)
        if self._settings.action == "stop":
            raise _stopped(self._runtime.run, warning)


def _of_text(tell: Callable[[str], None]) -> Callable[[RunWarning], None]:
    return lambda warning: tell(warning.text)


def _stopped(run: str, warning: RunWarning) -> UserError:
    return UserError(
        f"{warning.text}; run '{run}' ends here, since nothing_learnt.action is 'stop': continue it with --run {run} "
        "--set nothing_learnt.action=warn"
    )
