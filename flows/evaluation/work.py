"""`sdsearch evaluate`: one policy on whole data sets, as a run of its own that can be resumed and queried."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flows.console.errors import UserError
from flows.console.terminal import format_seconds, make_table, print_line
from flows.evaluation.plan import EvaluationPlan
from flows.evaluation.stage import evaluate_sets
from flows.run.inputs import check_inputs, check_source_model, keep_inputs
from flows.run.live import Runtime, open_runtime
from flows.run.policy import check_device
from flows.run.progress import Reporter, SilentReporter
from flows.run.status import tracked_status
from flows.settings.load import describe_differences
from schemas.commands import command
from schemas.records.evaluation import EvaluationAnswer, EvaluationReport
from schemas.records.ledger import RunRecord, StageKey
from sdsearch.evaluation.intervals import Interval, bootstrap_mean
from sdsearch.training.nothing_learnt import describe_no_turn, writes_no_turn
from storage.database.stage_rows import answers_file
from storage.errors import RunNotFoundError
from storage.runs.lock import RunLock
from storage.storage import Storage

_SAY_EVERY_S = 30.0
_COLUMNS = ("data set", "split", "questions", "EM", "95 %", "F1", "searches", "search quality", "valid")


class SetResult(NamedTuple):
    """One data set's figures, and its answers."""

    report: EvaluationReport
    answers: list[EvaluationAnswer]


class EvaluationReporter(SilentReporter):
    """Shows a bar of answered questions; a line now and then where output is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._started = self._said = time.monotonic()
        self._first: int | None = None

    def stage_progress(self, done: int, total: int) -> None:
        """Show how many questions are answered; batches that an earlier attempt finished count at once."""
        if self._console.is_terminal:
            self._move_bar(done, total)
        elif done < total and time.monotonic() - self._said >= _SAY_EVERY_S:
            self._said = time.monotonic()
            pace = (done - (self._first or 0)) / (self._said - self._started)
            left = format_seconds((total - done) / pace) if pace > 0 else "?"
            print_line(self._console, f"{done} of {total} questions answered, about {left} left")
        self._first = done if self._first is None else self._first

    def close(self) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()

    def _move_bar(self, done: int, total: int) -> None:
        if self._bar is None:
            columns = (TextColumn("questions"), BarColumn(bar_width=40), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, speed_estimate_period=3600.0)
            self._bar.add_task("questions", total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done)


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
        print_line(console, f"warning: {describe_no_turn(all_answers)} (docs/nothing-learnt.md)")
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


def print_results(plan: EvaluationPlan, results: Sequence[SetResult], console: Console) -> None:
    """Print a row a data set, and their unweighted mean, as the paper has it."""
    (mode,) = plan.settings.evaluation.modes
    num_questions = sum(report.num_questions for report, _ in results)
    print_line(console, f"{plan.title}: {num_questions} questions, {mode} ({plan.run})")
    rows = [
        (report.dataset, report.split, report.num_questions, *_figures([report], _interval([answers], plan)))
        for report, answers in results
    ]
    if len(results) > 1:
        interval = _interval([answers for _, answers in results], plan)
        rows.append((f"mean of {len(results)}", "", num_questions, *_figures([r for r, _ in results], interval)))
    console.print(make_table(_COLUMNS, rows))


def _figures(reports: Sequence[EvaluationReport], interval: Interval) -> tuple[object, ...]:
    """Return the table's figures: means over data sets, each of which counts the same."""
    names = ("em", "f1", "searches_per_rollout", "search_quality", "valid_share")
    em, *others = (f"{sum(getattr(report, name) for report in reports) / len(reports):.3f}" for name in names)
    return (em, f"{interval.low:.3f} … {interval.high:.3f}", *others)


def _interval(answers: Sequence[Sequence[EvaluationAnswer]], plan: EvaluationPlan) -> Interval:
    ems = [np.array([answer.em for answer in of_set]) for of_set in answers]
    return bootstrap_mean(ems, seed=plan.settings.evaluation.seed)


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
