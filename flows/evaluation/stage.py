"""The work of the evaluate stage: every question of the data sets answered once, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flows.run.live import LIVE_CODE, Runtime
from flows.run.perform import Attempt, StageRunner
from flows.run.progress import RolloutProgress
from flows.run.stage_inputs import StageKind
from schemas.records.evaluation import EvaluationAnswer, EvaluationReport
from schemas.records.ledger import StageRecord
from schemas.settings.data import SetName
from sdsearch.evaluation.answering import Asking, answer_questions, batches, fixed_sample, summarise
from storage.database.stage_rows import answers_file

EVALUATE: Final = StageKind(
    "evaluate",
    reads=("seed", "model", "data", "rollout", "sampling", "evaluation", "retrieval.num_passages"),
    code=(__name__, *LIVE_CODE),
)


def evaluate_policy(live: Runtime, runner: StageRunner, iteration: int, last_update: StageRecord | None) -> StageRecord:
    """Evaluate the plain policy after `iteration` updates on the fixed sample of questions."""
    return evaluate_sets(live, runner, iteration, last_update, [live.evaluated_set])


def evaluate_sets(
    live: Runtime, runner: StageRunner, version: int, last_update: StageRecord | None, names: Sequence[SetName]
) -> StageRecord:
    """Evaluate the weights of `version`, which `last_update` made (None: the starting weights)."""
    questions = [live.questions.load(name).report.questions_sha256 for name in names]
    upstream = [last_update or live.base_fingerprint, live.index_fingerprint, *questions]
    with runner.attempt(EVALUATE, version, upstream) as attempt:
        if attempt.needed:
            _answer_sets(live, runner, attempt, names)
    for report in runner.files.read(attempt.record, "reports", EvaluationReport):
        runner.reporter.evaluated(report)
    return attempt.record


def _answer_sets(live: Runtime, runner: StageRunner, attempt: Attempt, names: Sequence[SetName]) -> None:
    settings, version = runner.settings, attempt.record.iteration
    plan = settings.evaluation
    samples = [fixed_sample(live.questions.of(name), plan.num_questions, plan.seed) for name in names]
    # A batch is never cut anew, and holds one sibling a question where a training batch holds a group's.
    size = settings.rollout.questions_per_batch * 4
    progress = RolloutProgress(runner.reporter, sum(map(len, samples)) * len(plan.modes), group_size=1)
    loop = live.rollout_loop(version, progress)
    answers: dict[str, list[EvaluationAnswer]] = {}
    reports: list[EvaluationReport] = []
    for index, questions in enumerate(samples):
        for mode in plan.modes:
            asking = Asking(mode, settings.rollout.temperature, plan.seed, version)
            found = answers.setdefault(answers_file(mode, index), [])
            for start, batch in batches(questions, size):
                part = f"{mode}-{index}-{start:06d}"
                found += attempt.find_partial(part, EvaluationAnswer) or attempt.keep_partial(
                    part, EvaluationAnswer, answer_questions(loop, batch, asking)
                )
                progress.kept(sum(map(len, answers.values())))
            reports.append(summarise(questions[0], found, asking, version))
    attempt.write("reports", EvaluationReport, reports)
    for name, found in answers.items():
        attempt.write(name, EvaluationAnswer, found)
