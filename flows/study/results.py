"""What a study's runs have measured, read from the database, and what it says of the variants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev

import numpy as np

from flows.console.errors import UserError
from flows.study.plan import PlannedRun
from schemas.records.evaluation import EvaluationMode, EvaluationReport
from schemas.records.ledger import RunRecord
from schemas.records.study import (
    PairedDifference,
    RewardMean,
    RunOutcome,
    Study,
    StudyResults,
    VariantSummary,
)
from schemas.records.study_figures import Estimate
from sdsearch.evaluation.intervals import paired_bootstrap
from sdsearch.seeds import derive_seed
from storage.database.connection import Database

# The table has a column for each of the report's figures, and `iteration` under the name that says what it counts.
_FIGURES = ", ".join(name for name in EvaluationReport.model_fields if name != "iteration")
_EVALUATIONS = f"""
    SELECT run, updates_done AS iteration, {_FIGURES}
    FROM evaluations WHERE NOT further AND run IN (SELECT unnest($runs)) ORDER BY run, updates_done, mode
"""
_REWARDS = """
    SELECT run, iteration, part, value_mean AS mean
    FROM v_reward_parts WHERE run IN (SELECT unnest($runs)) ORDER BY run, part, iteration
"""
_LAST_ANSWERS = """
    SELECT run, question_key, a.em
    FROM evaluation_answers AS a JOIN evaluations AS e USING (run, iteration, mode, dataset, split)
    WHERE NOT e.further AND mode = $mode AND run IN (SELECT unnest($runs))
    QUALIFY iteration = max(iteration) OVER (PARTITION BY run)
    ORDER BY run, question_key
"""
# A run's name -> a question's key -> EM.
_Answers = Mapping[str, Mapping[str, float]]


def find_outcomes(
    planned: Sequence[PlannedRun], records: Mapping[str, RunRecord], database: Database
) -> list[RunOutcome]:
    """Return what each planned run has measured so far; nothing for a run that was never started."""
    rows = database.query(_EVALUATIONS, {"runs": [plan.run for plan in planned]}).to_pylist()
    reports: dict[str, list[EvaluationReport]] = {plan.run: [] for plan in planned}
    for row in rows:
        reports[row.pop("run")].append(EvaluationReport.model_validate(row))
    rewards: dict[str, list[RewardMean]] = {plan.run: [] for plan in planned}
    for row in database.query(_REWARDS, {"runs": list(rewards)}).to_pylist():
        rewards[row.pop("run")].append(RewardMean.model_validate(row))
    return [_outcome(plan, records.get(plan.run), reports[plan.run], rewards[plan.run]) for plan in planned]


def summarise(study: Study, outcomes: Sequence[RunOutcome], database: Database) -> StudyResults:
    """Return the table's rows, of finished runs only; each mode of evaluation gets its own.

    Raises UserError when runs of the same seed answered different questions.
    """
    finished = [outcome for outcome in outcomes if outcome.finished]
    summaries: list[VariantSummary] = []
    for mode in _modes(finished):
        answers = _last_answers(database, mode, finished)
        for variant in study.variants:
            runs = [outcome for outcome in finished if outcome.variant == variant]
            if runs:
                difference = _difference(study, variant, mode, finished, answers)
                summaries.append(_summary(variant, mode, runs, difference))
    return StudyResults(study=study, outcomes=tuple(outcomes), summaries=tuple(summaries))


def _outcome(
    plan: PlannedRun,
    record: RunRecord | None,
    reports: Sequence[EvaluationReport],
    rewards: Sequence[RewardMean],
) -> RunOutcome:
    last_modes = {report.mode for report in reports if report.iteration == plan.settings.iterations}
    done = record is not None and record.status == "done"
    return RunOutcome(
        run=plan.run,
        variant=plan.variant,
        seed=plan.seed,
        finished=done and last_modes >= set(plan.settings.evaluation.modes),
        updates_done=record.iterations_done if record else 0,
        num_iterations=plan.settings.iterations,
        only_warms_up=plan.settings.only_warms_up,
        evaluations=tuple(reports),
        rewards=tuple(rewards),
    )


def _modes(outcomes: Sequence[RunOutcome]) -> list[EvaluationMode]:
    return sorted({report.mode for outcome in outcomes for report in outcome.evaluations})


def _last_answers(database: Database, mode: EvaluationMode, outcomes: Sequence[RunOutcome]) -> _Answers:
    runs = [outcome.run for outcome in outcomes]
    answers: dict[str, dict[str, float]] = {run: {} for run in runs}
    for row in database.query(_LAST_ANSWERS, {"mode": mode, "runs": runs}).to_pylist():
        answers[row["run"]][row["question_key"]] = row["em"]
    return answers


def _difference(
    study: Study, variant: str, mode: EvaluationMode, finished: Sequence[RunOutcome], answers: _Answers
) -> PairedDifference | None:
    run_of = {(outcome.variant, outcome.seed): outcome.run for outcome in finished}
    pairs = [
        (run_of[variant, seed], run_of[study.baseline, seed])
        for seed in study.seeds
        if (variant, seed) in run_of and (study.baseline, seed) in run_of
    ]
    if variant == study.baseline or not pairs:
        return None
    runs = [run for pair in pairs for run in pair]
    questions = list(answers[runs[0]])
    for run in runs:
        if list(answers[run]) != questions:
            raise UserError(
                f"run '{run}' was evaluated on other questions than '{runs[0]}', so that they cannot be paired; give "
                "the study another name and train it again"
            )
    scores, baseline = (
        np.array([[answers[run][question] for question in questions] for run in side])
        for side in zip(*pairs, strict=True)
    )
    interval = paired_bootstrap(scores, baseline, seed=derive_seed("bootstrap", variant, mode))
    return PairedDifference(**interval._asdict(), num_seeds=len(pairs), num_questions=len(questions))


def _summary(
    variant: str, mode: EvaluationMode, runs: Sequence[RunOutcome], difference: PairedDifference | None
) -> VariantSummary:
    curves = [[report for report in run.evaluations if report.mode == mode] for run in runs]

    def of_last(figure: Callable[[EvaluationReport], float]) -> Estimate:
        return estimate([figure(curve[-1]) for curve in curves])

    return VariantSummary(
        variant=variant,
        mode=mode,
        num_seeds=len(runs),
        final_em=of_last(lambda report: report.em),
        best_em=estimate([max(report.em for report in curve if report.iteration > 0) for curve in curves]),
        search_quality=of_last(lambda report: report.search_quality),
        searches_per_rollout=of_last(lambda report: report.searches_per_rollout),
        difference=difference,
    )


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean and unbiased standard deviation."""
    return Estimate(mean=fmean(values), std=stdev(values) if len(values) > 1 else None)
