"""`sdsearch evaluate`: one policy on whole data sets, as a run of its own that can be resumed and queried."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from rich.console import Console

from flows.console.terminal import print_line
from flows.evaluation.answerability import answerable_answers
from flows.evaluation.judging import answers_of, api_key, judge_evaluation
from flows.evaluation.plan import EvaluationPlan
from flows.evaluation.share import check_workers, helpers_of
from flows.evaluation.show import EvaluationReporter, SetResult, print_results
from flows.evaluation.stage import Helpers, evaluate_sets
from flows.plugins.check import check_sinks
from flows.run.inputs import check_inputs, check_source_model, keep_inputs
from flows.run.live import Runtime, open_runtime
from flows.run.perform import StageRunner
from flows.run.policy import check_device
from flows.run.progress import Reporter
from flows.run.records import check_settings, find_known, new_run
from flows.run.status import tracked_status
from flows.settings.load import stored_settings
from flows.tracking.tracking import open_tracking
from schemas.commands import command
from schemas.records.evaluation import EvaluationConditions
from schemas.records.judging import JudgedEvaluation
from schemas.records.ledger import RunRecord, StageKey, StageRecord
from sdsearch.training.nothing_learnt import describe_no_turn, writes_no_turn
from storage.database.stage_rows import CONDITIONS, JUDGED, has_file
from storage.runs.lock import RunLock
from storage.storage import Storage


def evaluate_and_print(plan: EvaluationPlan, storage: Storage, console: Console, num_workers: int = 1) -> None:
    """Do what of an evaluation is not done yet and print its table; errors as of `evaluate`."""
    reporter = EvaluationReporter(console)
    try:
        results = evaluate(plan, storage, reporter, num_workers, judged=True)
    finally:
        reporter.close()
    print_results(plan, results, console)
    all_answers = [answer for result in results for answer in result.answers]
    if writes_no_turn(all_answers):
        print_line(console, f"warning: {describe_no_turn(all_answers)} (docs/how-to/nothing-learnt.md)")
    query = "SELECT * FROM evaluation_answers WHERE run = $run"
    print_line(console, f"answers: {command('sql', query, '--run', plan.run, workspace=storage.workspace.root)}")


def evaluate(
    plan: EvaluationPlan, storage: Storage, reporter: Reporter, num_workers: int = 1, *, judged: bool = False
) -> list[SetResult]:
    """Answer the questions that are not answered yet, in `num_workers` processes, and return every data set's figures.

    judged: whether the judge of the settings, where they name one, is asked; JudgeError where it gives no verdict.
    Raises UserError for a data set that cannot be used, a name that belongs to another run and a worker that fails,
    RunLockedError while another process works on this evaluation.
    """
    check_workers(plan.settings, num_workers)
    lock = RunLock(storage.workspace, plan.run)
    with lock:
        known = find_known(storage, plan.run, lambda kind: kind == plan.kind, "--name")
        if known is not None:
            check_settings(known, plan.settings, "--name")
        with open_runtime(plan.settings, plan.run, storage, reporter, plan.source) as runtime:
            _prepare(runtime, plan)
            if judged:
                _ = api_key(plan.settings.evaluation.judge)
            if known is None:
                storage.create_run(new_run(plan.run, plan.settings, plan.kind))
            else:
                check_inputs(runtime, known, plan.sets)
                _keep_judge(storage, known, plan)
            keep_inputs(runtime, plan.sets)
            record = storage.ledger.get_run(plan.run)
            with open_tracking(plan.settings, record, storage, reporter) as tracking, tracked_status(storage, plan.run):
                num_done = plan.version if known is not None and known.iterations_done else -1
                runner = StageRunner(runtime, lock.check, num_done)
                evaluated = _evaluate(runtime, runner, plan, helpers_of(num_workers))
                shares = _judged_shares(runtime, runner, evaluated) if judged else {}
                tracking.show(plan.version)
            return _results(runner, evaluated, shares)


def _prepare(runtime: Runtime, plan: EvaluationPlan) -> None:
    """Load what the settings name, so that what cannot be used leaves no run behind."""
    check_sinks(plan.settings)
    check_device(plan.settings.model.device)
    for name in plan.sets:
        runtime.questions.read(name)
    _ = runtime.sampler, runtime.policy, runtime.index_fingerprint, runtime.prompts.frame
    if plan.source is not None:
        check_source_model(runtime, plan.version)
    if not runtime.prompts.are_kept:
        runtime.policy.move_to(plan.version)
    for name in plan.sets:
        runtime.questions.load(name)


def _keep_judge(storage: Storage, known: RunRecord, plan: EvaluationPlan) -> None:
    """Make the judge that an evaluation goes on with its stored one, so that it is resumed with it."""
    if stored_settings(known).evaluation.judge != plan.settings.evaluation.judge:
        record = storage.ledger.get_run(known.run)
        storage.update_run(record.model_copy(update={"settings_json": plan.settings.model_dump_json()}))


def _evaluate(runtime: Runtime, runner: StageRunner, plan: EvaluationPlan, helpers: Helpers) -> StageRecord:
    storage = runtime.storage
    key = StageKey(run=plan.source or plan.run, iteration=plan.version, stage="update")
    record = evaluate_sets(runtime, runner, plan.version, storage.ledger.done(key), plan.evaluated, helpers)
    done = storage.ledger.get_run(plan.run)
    storage.update_run(done.model_copy(update={"iterations_done": 1, "updated_at": datetime.now(UTC)}))
    return record


def _results(runner: StageRunner, evaluated: StageRecord, shares: Mapping[tuple[str, ...], float]) -> list[SetResult]:
    sets = answers_of(runner.files, evaluated)
    known = has_file(evaluated, CONDITIONS)
    conditions = runner.files.read(evaluated, CONDITIONS, EvaluationConditions) if known else [None] * len(sets)
    return [
        SetResult(
            report,
            answers,
            made_under,
            answerable_answers(runner.storage, made_under, answers),
            shares.get((report.dataset, report.split, report.mode)),
        )
        for (report, answers), made_under in zip(sets, conditions, strict=True)
    ]


def _judged_shares(runtime: Runtime, runner: StageRunner, evaluated: StageRecord) -> dict[tuple[str, ...], float]:
    """Return the share of answers that the judge calls right, of each set and mode; nothing where there is no judge."""
    if not runtime.settings.evaluation.judge.url:
        return {}
    judged = runner.files.read(judge_evaluation(runtime, runner, evaluated), JUDGED, JudgedEvaluation)
    return {(each.dataset, each.split, each.mode): each.judged_right for each in judged}
