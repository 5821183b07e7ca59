"""`sdsearch evaluate`: one policy on whole data sets, as a run of its own that can be resumed and queried."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version

from rich.console import Console

from flows.console.errors import UserError
from flows.console.terminal import print_line
from flows.evaluation.plan import EvaluationPlan
from flows.evaluation.show import EvaluationReporter, SetResult, print_results
from flows.evaluation.stage import evaluate_sets
from flows.run.inputs import check_inputs, check_source_model, keep_inputs
from flows.run.live import Runtime, open_runtime
from flows.run.policy import check_device
from flows.run.progress import Reporter
from flows.run.status import tracked_status
from flows.settings.load import describe_differences
from schemas.commands import command
from schemas.records.evaluation import EvaluationAnswer, EvaluationReport
from schemas.records.ledger import RunRecord, StageKey
from sdsearch.training.nothing_learnt import describe_no_turn, writes_no_turn
from storage.database.stage_rows import answers_file
from storage.errors import RunNotFoundError
from storage.runs.lock import RunLock
from storage.storage import Storage


def evaluate_and_print(plan: EvaluationPlan, storage: Storage, console: Console) -> None:
    """Do what of an evaluation is not done yet and print its table; errors as of `evaluate`."""
    reporter = EvaluationReporter(console)
    try:
        results = evaluate(plan, storage, reporter)
    finally:
        reporter.close()
    print_results(plan, results, console)
    all_answers = [answer for _, answers in results for answer in answers]
    if writes_no_turn(all_answers):
        print_line(console, f"warning: {describe_no_turn(all_answers)} (docs/how-to/nothing-learnt.md)")
    query = "SELECT * FROM evaluation_answers WHERE run = $run"
    print_line(console, f"answers: {command('sql', query, '--run', plan.run, workspace=storage.workspace.root)}")


def evaluate(plan: EvaluationPlan, storage: Storage, reporter: Reporter) -> list[SetResult]:
    """Answer the questions that are not answered yet and return every data set's figures.

    Raises UserError for a data set that cannot be used and a name that belongs to another run, RunLockedError while
    another process works on this evaluation.
    """
    lock = RunLock(storage.workspace, plan.run)
    with lock:
        known = _find_evaluation(storage, plan)
        with open_runtime(plan.settings, plan.run, storage, reporter, lock, plan.source) as runtime:
            _prepare(runtime, plan)
            if known is None:
                storage.create_run(_new_evaluation(plan))
            else:
                check_inputs(runtime, known, plan.sets)
            keep_inputs(runtime, plan.sets)
            with tracked_status(storage, plan.run):
                return _evaluate(runtime, plan)


def _prepare(runtime: Runtime, plan: EvaluationPlan) -> None:
    """Load what the settings name, so that what cannot be used leaves no run behind."""
    check_device(plan.settings.model.device)
    for name in plan.sets:
        runtime.questions.read(name)
    _ = runtime.sampler, runtime.policy, runtime.index_fingerprint, runtime.prompts.frame
    if plan.source is not None:
        is_in_folder = plan.settings.model.tuning == "lora" or not plan.version
        check_source_model(runtime, with_weights=is_in_folder)
    if not runtime.prompts.are_kept:
        runtime.policy.move_to(plan.version)
    for name in plan.sets:
        runtime.questions.load(name)


def _evaluate(runtime: Runtime, plan: EvaluationPlan) -> list[SetResult]:
    storage = runtime.storage
    key = StageKey(run=plan.source or plan.run, iteration=plan.version, stage="update")
    record = evaluate_sets(runtime, plan.version, storage.ledger.done(key), plan.sets)
    done = storage.ledger.get_run(plan.run)
    storage.update_run(done.model_copy(update={"iterations_done": 1, "updated_at": datetime.now(UTC)}))
    (mode,) = plan.settings.evaluation.modes
    return [
        SetResult(report, runtime.read(record, answers_file(mode, index), EvaluationAnswer))
        for index, report in enumerate(runtime.read(record, "reports", EvaluationReport))
    ]


def _find_evaluation(storage: Storage, plan: EvaluationPlan) -> RunRecord | None:
    """Return the record of this evaluation, None when the name is free; UserError when it is another run's."""
    try:
        record = storage.ledger.get_run(plan.run)
    except RunNotFoundError:
        return None
    if record.evaluation_of is None:
        raise UserError(f"run '{plan.run}' is no evaluation; choose another --name")
    if (record.evaluation_of, record.policy_version) != (plan.policy, plan.version):
        raise UserError(
            f"evaluation '{plan.run}' is of {record.evaluation_of}, version {record.policy_version}; choose another "
            "--name"
        )
    if record.settings_hash != plan.settings.content_hash():
        changes = describe_differences(record.settings_json, plan.settings)
        raise UserError(f"evaluation '{plan.run}' exists with other settings ({changes}); choose another --name")
    return record


def _new_evaluation(plan: EvaluationPlan) -> RunRecord:
    now = datetime.now(UTC)
    return RunRecord(
        run=plan.run,
        status="running",
        settings_json=plan.settings.model_dump_json(),
        settings_hash=plan.settings.content_hash(),
        code_version=version("sdsearch"),
        seed=plan.settings.seed,
        num_iterations=1,
        iterations_done=0,
        evaluation_of=plan.policy,
        policy_version=plan.version,
        policy_sha256="",
        created_at=now,
        updated_at=now,
    )
