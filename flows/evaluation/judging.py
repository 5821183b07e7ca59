"""The judge stage: what the judge of the settings says of an evaluation's answers; it changes none of them.

The verdicts are asked for before the stage's attempt begins, each is kept as it comes, and the stage writes them down:
a judge that fails leaves no attempt behind, and whoever goes on asks for the verdicts that are missing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Final

from flows.console.interrupts import resume_command
from flows.run.live import Runtime
from flows.run.perform import StageRunner
from flows.run.stage_files import StageFiles
from flows.run.stage_inputs import StageKind
from schemas.base import hash_json
from schemas.errors import UserError
from schemas.records.evaluation import EvaluationAnswer, EvaluationReport
from schemas.records.judging import AnswerVerdict, JudgedEvaluation
from schemas.records.ledger import StageRecord
from schemas.settings.judge import JudgeSettings
from sdsearch.evaluation.judge import Judge, Judged, JudgeError, Verdict, case_key, judge_all
from storage.database.stage_rows import JUDGED, VERDICTS, answers_file
from storage.errors import DamagedArtifactError
from storage.runs.verdicts import VerdictCache

JUDGE: Final = StageKind("judge", reads=(), code=(__name__, "sdsearch.evaluation.judge"))
_Answered = list[tuple[EvaluationReport, list[EvaluationAnswer]]]


def api_key(settings: JudgeSettings) -> str:
    """Return the judge's key from the environment; UserError where the settings name a variable that is not there."""
    name = settings.api_key_env
    if name and not os.environ.get(name):
        raise UserError(
            f"evaluation.judge.api_key_env: the environment has no {name}; export it with the server's key, or leave "
            "the setting out for a server without one"
        )
    return os.environ[name] if name else ""


def judge_evaluation(live: Runtime, runner: StageRunner, evaluated: StageRecord) -> StageRecord:
    """Have the answers of a done evaluation judged, and keep what is said of them.

    JudgeError, in one line, where the judge gives no verdict: the answers stay, and so do the verdicts until then.
    """
    settings = live.settings.evaluation.judge
    sets = answers_of(runner.files, evaluated)
    verdicts = _verdicts(live, runner, evaluated, sets)
    asked = hash_json([settings.model, settings.prompt])
    with runner.attempt(JUDGE, evaluated.iteration, [evaluated, asked]) as attempt:
        if attempt.needed:
            rows = [[_row(settings, report, answer, verdicts) for answer in answers] for report, answers in sets]
            judged = [_judged(settings, report, of_set) for (report, _), of_set in zip(sets, rows, strict=True)]
            attempt.write(JUDGED, JudgedEvaluation, judged)
            attempt.write(VERDICTS, AnswerVerdict, [row for of_set in rows for row in of_set])
    return attempt.record


def judge_while_training(live: Runtime, runner: StageRunner, evaluated: StageRecord) -> None:
    """Judge an evaluation of a run that trains, where its settings say so; a judge that fails costs verdicts alone."""
    settings = live.settings.evaluation.judge
    if not (settings.url and settings.while_training):
        return
    try:
        done = judge_evaluation(live, runner, evaluated)
    except JudgeError as error:
        runner.reporter.warned(str(error))
        return
    for judged in runner.files.read(done, JUDGED, JudgedEvaluation):
        runner.reporter.noted(
            f"{judged.model} calls {judged.judged_right:.3f} of the answers to {judged.dataset} {judged.split}, "
            f"{judged.mode}, right after {evaluated.iteration} updates"
        )


def answers_of(files: StageFiles, evaluated: StageRecord) -> _Answered:
    """Return the reports of a done evaluation, each with its answers."""
    reports = files.read(evaluated, "reports", EvaluationReport)
    places = {name: place for place, name in enumerate(dict.fromkeys((r.dataset, r.split) for r in reports))}
    names = [answers_file(report.mode, places[report.dataset, report.split]) for report in reports]
    return [
        (report, files.read(evaluated, name, EvaluationAnswer)) for report, name in zip(reports, names, strict=True)
    ]


def _verdicts(
    live: Runtime, runner: StageRunner, evaluated: StageRecord, sets: _Answered
) -> dict[str, tuple[bool, str]]:
    """Return the verdict on every answer by its key; the judge is asked for those that nobody knows."""
    settings, storage = live.settings.evaluation.judge, live.storage
    cases = {_key(settings, answer): _case(answer) for _, answers in sets for answer in answers if answer.answer}
    with closing(VerdictCache(storage.workspace)) as cache:
        known = _stored(live, runner.files, evaluated) | cache.get(cases)
        missing = [case for key, case in cases.items() if key not in known]
        if not missing:
            return known
        runner.reporter.stage_started(evaluated.key_of("judge"))
        num_kept = len(cases) - len(missing)

        def keep(case: Judged, verdict: Verdict) -> None:
            nonlocal num_kept
            key = case_key(settings.model, settings.prompt, case)
            cache.put(key, *verdict)
            known[key] = (verdict.right, verdict.reply)
            num_kept += 1
            runner.reporter.stage_progress(num_kept, len(cases))

        with closing(Judge(settings, api_key(settings))) as judge:
            try:
                judge_all(judge, missing, settings.concurrency, keep)
            except JudgeError as error:
                raise JudgeError(
                    f"{error}; all {sum(len(answers) for _, answers in sets)} answers are kept, and {num_kept} of "
                    f"{len(cases)} verdicts: {_way_on(live)}"
                ) from error
    return known


def _way_on(live: Runtime) -> str:
    if live.storage.ledger.get_run(live.run).trains:
        return "the run goes on without the others"
    return f"continue with {resume_command(live.run, live.storage.workspace.root)}, or without evaluation.judge.url"


def _stored(live: Runtime, files: StageFiles, evaluated: StageRecord) -> dict[str, tuple[bool, str]]:
    """Return by their keys the verdicts of the stage's files, where it was done before."""
    done = live.storage.ledger.done(evaluated.key_of("judge"))
    try:
        rows = [] if done is None else files.read(done, VERDICTS, AnswerVerdict)
    except DamagedArtifactError:
        return {}  # The stage's attempt says it, and writes them again.
    return {row.asked_sha256: (row.judged_right, row.reply) for row in rows if row.asked_sha256}


def _case(answer: EvaluationAnswer) -> Judged:
    return Judged(answer.question, answer.golden_answers, answer.answer or "")


def _key(settings: JudgeSettings, answer: EvaluationAnswer) -> str:
    """Return what the verdict on an answer is known by; empty where there is no answer, which nobody is asked about."""
    return case_key(settings.model, settings.prompt, _case(answer)) if answer.answer else ""


def _row(
    settings: JudgeSettings,
    report: EvaluationReport,
    answer: EvaluationAnswer,
    verdicts: Mapping[str, tuple[bool, str]],
) -> AnswerVerdict:
    key = _key(settings, answer)
    right, reply = verdicts[key] if key else (False, "")
    return AnswerVerdict(
        mode=report.mode,
        dataset=report.dataset,
        split=report.split,
        question_key=answer.question_key,
        judged_right=right,
        reply=reply,
        asked_sha256=key,
    )


def _judged(settings: JudgeSettings, report: EvaluationReport, rows: Sequence[AnswerVerdict]) -> JudgedEvaluation:
    return JudgedEvaluation(
        mode=report.mode,
        dataset=report.dataset,
        split=report.split,
        model=settings.model,
        prompt=settings.prompt,
        num_questions=len(rows),
        judged_right=sum(row.judged_right for row in rows) / len(rows),
    )
