"""The work of the evaluate stage: every question of the data sets answered once, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from flows.evaluation.conditions import conditions_of
from flows.evaluation.judging import judge_while_training
from flows.run.live import LIVE_CODE, Runtime
from flows.run.perform import Attempt, StageRunner
from flows.run.progress import RolloutProgress
from flows.run.stage_inputs import StageKind
from schemas.records.evaluation import EvaluationAnswer, EvaluationConditions, EvaluationReport
from schemas.records.ledger import StageRecord
from schemas.records.question import Question
from schemas.settings.evaluation import EvaluatedSet
from sdsearch.evaluation.answering import Asking, answer_questions, batches, fixed_sample, summarise
from sdsearch.sampling.rollouts import RolloutLoop
from storage.database.stage_rows import CONDITIONS, answers_file

EVALUATE: Final = StageKind(
    "evaluate",
    reads=("seed", "model", "data", "rollout", "sampling", "evaluation", "retrieval.num_passages"),
    code=(__name__, *LIVE_CODE),
)


@dataclass(frozen=True)
class Batch:
    """Questions that are answered together; `file` is the stage's file that its answers go to."""

    name: str
    file: str
    questions: Sequence[Question]
    asking: Asking
    is_further: bool = False

    def answer(self, loop: RolloutLoop) -> list[EvaluationAnswer]:
        """Answer each question once; the answers depend on nothing outside the batch."""
        return answer_questions(loop, self.questions, self.asking)


Helpers = Callable[[Runtime, StageRecord, Sequence[Batch], RolloutProgress], None]
"""Have the batches that are missing in an attempt answered by others, who leave them as pieces of the attempt."""


def no_helpers(live: Runtime, attempt: StageRecord, missing: Sequence[Batch], progress: RolloutProgress) -> None:
    """Leave every batch to the process that evaluates."""


def evaluate_policy(live: Runtime, runner: StageRunner, iteration: int, last_update: StageRecord | None) -> StageRecord:
    """Evaluate the plain policy after `iteration` updates on the fixed samples of the sets whose turn it is."""
    evaluated = evaluate_sets(live, runner, iteration, last_update, _due(live, iteration))
    judge_while_training(live, runner, evaluated)
    return evaluated


def _due(live: Runtime, iteration: int) -> tuple[EvaluatedSet, ...]:
    """Return the sets whose turn it is; a run's start is evaluated on all."""
    settings = live.settings
    is_start = iteration == live.storage.ledger.get_run(live.run).first_iteration - 1
    due = () if is_start else settings.evaluated_after(iteration)
    return due or settings.evaluation.sets_of_run(settings.data)


def evaluate_sets(
    live: Runtime,
    runner: StageRunner,
    version: int,
    last_update: StageRecord | None,
    sets: Sequence[EvaluatedSet],
    helpers: Helpers = no_helpers,
) -> StageRecord:
    """Evaluate the weights of `version`, which `last_update` made (None: the starting weights)."""
    with runner.attempt(EVALUATE, version, evaluation_inputs(live, last_update, sets)) as attempt:
        if attempt.needed:
            _answer_sets(live, runner, attempt, sets, helpers)
    for report in runner.files.read(attempt.record, "reports", EvaluationReport):
        runner.reporter.evaluated(report)
    return attempt.record


def evaluation_inputs(
    live: Runtime, last_update: StageRecord | None, sets: Sequence[EvaluatedSet]
) -> list[StageRecord | str]:
    """Return what an evaluation reads: the weights, what is searched, the questions of the data sets."""
    questions = [live.questions.load(name).report.questions_sha256 for name, _, _ in sets]
    return [last_update or live.base_fingerprint, live.index_fingerprint, *questions]


def evaluation_batches(live: Runtime, version: int, sets: Sequence[EvaluatedSet]) -> list[Batch]:
    """Return all batches of an evaluation, in the order of its files; a batch is never cut anew."""
    settings, plan = live.settings, live.settings.evaluation
    size = settings.rollout.questions_per_evaluation_batch
    samples = [fixed_sample(live.questions.of(each.name), each.num_questions, plan.seed) for each in sets]
    return [
        Batch(
            f"{mode}-{index}-{start:06d}",
            answers_file(mode, index),
            batch,
            Asking(mode, settings.rollout.temperature, plan.seed, version),
            sets[index].is_further,
        )
        for index, questions in enumerate(samples)
        for mode in plan.modes
        for start, batch in batches(questions, size)
    ]


def _answer_sets(
    live: Runtime, runner: StageRunner, attempt: Attempt, sets: Sequence[EvaluatedSet], helpers: Helpers
) -> None:
    version = attempt.record.iteration
    whole = evaluation_batches(live, version, sets)
    progress = RolloutProgress(runner.reporter, sum(len(batch.questions) for batch in whole), group_size=1)
    missing = [batch for batch in whole if attempt.find_partial(batch.name, EvaluationAnswer) is None]
    helpers(live, attempt.record, missing, progress)
    loop = live.rollout_loop(version, progress)
    answers: dict[str, list[EvaluationAnswer]] = {}
    for batch in whole:
        found = attempt.find_partial(batch.name, EvaluationAnswer)
        if found is None:
            found = attempt.keep_partial(batch.name, EvaluationAnswer, batch.answer(loop))
        answers.setdefault(batch.file, []).extend(found)
        progress.kept(sum(map(len, answers.values())))
    first = {batch.file: batch for batch in reversed(whole)}
    reports = [
        summarise(of.questions[0], found, of.asking, version, further=of.is_further)
        for of, found in ((first[file], found) for file, found in answers.items())
    ]
    attempt.write("reports", EvaluationReport, reports)
    asked = {file: [question for b in whole if b.file == file for question in b.questions] for file in answers}
    conditions = [conditions_of(live, attempt.record, first[file].asking.mode, asked[file]) for file in answers]
    attempt.write(CONDITIONS, EvaluationConditions, conditions)
    for name, found in answers.items():
        attempt.write(name, EvaluationAnswer, found)
