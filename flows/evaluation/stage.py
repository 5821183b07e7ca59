"""The work of the evaluate stage: every question of the data sets answered once, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from flows.run.live import Runtime
from schemas.records.evaluation import EvaluationAnswer, EvaluationMode, EvaluationReport
from schemas.records.ledger import ArtifactRef, StageRecord
from schemas.records.question import Question
from schemas.settings.data import SetName
from sdsearch.evaluation.answering import answer_questions, fixed_sample, summarise
from storage.database.stage_rows import answers_file


def evaluate_sets(
    runtime: Runtime, version: int, last_update: StageRecord | None, names: Sequence[SetName]
) -> StageRecord:
    """Evaluate the weights of `version`, which `last_update` made (None: the starting weights)."""
    questions = [runtime.questions.load(name).report.questions_sha256 for name in names]
    upstream = [last_update or runtime.base_fingerprint, runtime.index_fingerprint, *questions]
    record = runtime.perform("evaluate", version, upstream, lambda record: _answer_sets(runtime, record, names))
    for report in runtime.read(record, "reports", EvaluationReport):
        runtime.reporter.evaluated(report)
    return record


def _answer_sets(runtime: Runtime, record: StageRecord, names: Sequence[SetName]) -> list[ArtifactRef]:
    plan, version = runtime.settings.evaluation, record.iteration
    samples = [fixed_sample(runtime.questions.of(name), plan.num_questions, plan.seed) for name in names]
    loop = runtime.rollout_loop(version)
    # A batch is never cut anew, and holds one sibling a question where a training batch holds a group's.
    size = runtime.settings.rollout.questions_per_batch * 4
    total = sum(map(len, samples)) * len(plan.modes)
    num_done = 0

    def answer(batch: Sequence[Question], mode: EvaluationMode) -> list[EvaluationAnswer]:
        return answer_questions(
            loop,
            batch,
            mode=mode,
            temperature=runtime.settings.rollout.temperature,
            seed=plan.seed,
            policy_version=version,
            questions_per_batch=size,
        )

    reports: list[EvaluationReport] = []
    files: list[ArtifactRef] = []
    for index, questions in enumerate(samples):
        for mode in plan.modes:
            found: list[EvaluationAnswer] = []
            for start in range(0, len(questions), size):
                batch = questions[start : start + size]
                found += runtime.partial_result(
                    record, f"{mode}-{index}-{start:06d}", EvaluationAnswer, partial(answer, batch, mode)
                )
                runtime.reporter.stage_progress(num_done + len(found), total)
            num_done += len(found)
            reports.append(summarise(questions[0], found, mode, version, version))
            files.append(runtime.write(record, answers_file(mode, index), EvaluationAnswer, found))
    return [runtime.write(record, "reports", EvaluationReport, reports), *files]
