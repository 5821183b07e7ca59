"""The questions for reporting: no choice has seen them, and they are read once all runs of a study are finished.

Each policy of the protocol's updates answers them in an evaluation of its own, an ordinary run of the workspace. That
they were read, when and for which runs, is kept in the study's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from flows.console.errors import UserError
from flows.jobs.orders import EvaluateOrder
from flows.jobs.processes import Job, carry_out_jobs
from flows.study.answers import Place
from flows.study.plan import PlannedRun
from flows.study.side_by_side import study_failures, study_job, study_places
from flows.study.trainings import RunFailure
from schemas.commands import command
from schemas.records.ledger import StageKey
from schemas.records.study import HeldOutReading, Study
from schemas.settings.root import Settings
from storage.runs.artifacts import ArtifactStore
from storage.runs.checkpoints import CheckpointStore
from storage.runs.ledger import Ledger
from storage.runs.studies import add_held_out_reading, read_held_out_readings
from storage.workspace import Workspace, validate_run_name


def check_held_out(
    study: Study, planned: Sequence[PlannedRun], finished: Collection[str], workspace: Workspace
) -> None:
    """Raise UserError unless the questions for reporting may be read now, and can be."""
    protocol, evaluation = study.protocol, planned[0].settings.evaluation
    if protocol.report_split == evaluation.split:
        raise UserError(
            f"study {study.name}: protocol.report_split is '{protocol.report_split}', which the runs were evaluated on "
            "while they trained; name a split that no choice has seen"
        )
    unfinished = [plan.run for plan in planned if plan.run not in finished]
    if unfinished:
        raise UserError(
            f"study {study.name}: {len(unfinished)} of its {len(planned)} runs are not finished ({unfinished[0]}, …), "
            f"and the {protocol.report_split} questions are read at the end; train them first with: "
            f"{command('study', study.name, workspace=workspace.root)}"
        )
    store = CheckpointStore(workspace)
    for plan in planned:
        held = {0, *store.versions(plan.run)}
        missing = [updates for updates in _updates(study, plan.settings) if updates not in held]
        if missing:
            raise UserError(
                f"study {study.name}: run '{plan.run}' has kept no checkpoint of version {missing[0]}, which "
                "protocol.updates names; train a study of another name with storage.keep_evaluated=true in its set, or "
                "with a larger storage.keep_checkpoints"
            )


def read_held_out(
    study: Study, planned: Sequence[PlannedRun], workspace: Workspace, num_workers: int, tell: Callable[[str], None]
) -> list[RunFailure]:
    """Have every policy of the protocol answer the questions for reporting, unless it has; return what failed."""
    reading = HeldOutReading(
        read_at=datetime.now(UTC),
        split=study.protocol.report_split,
        num_questions=study.protocol.report_questions,
        runs=tuple(plan.run for plan in planned),
        code_version=version("sdsearch"),
    )
    add_held_out_reading(workspace, study.name, reading)
    ledger = Ledger(ArtifactStore(workspace))
    waiting = [plan for plan in planned if any(ledger.done(key) is None for key in _keys(study, plan))]
    tell(f"{reading.split} questions: {len(planned) - len(waiting)} of {len(planned)} runs have answered them already")
    jobs = [_job(study, plan, workspace) for plan in waiting]
    return study_failures(carry_out_jobs(jobs, workspace, study_places(planned, num_workers), tell))


def held_out_places(study: Study, planned: Sequence[PlannedRun], workspace: Workspace) -> dict[str, dict[int, Place]]:
    """Return who evaluated which policy of these runs on the questions for reporting; nothing while nobody may."""
    if not read_held_out_readings(workspace, study.name):
        return {}
    ledger = Ledger(ArtifactStore(workspace))
    done = {plan.run: [key for key in _keys(study, plan) if ledger.done(key) is not None] for plan in planned}
    return {run: {key.iteration: (key.run, key.iteration) for key in keys} for run, keys in done.items() if keys}


def _job(study: Study, plan: PlannedRun, workspace: Workspace) -> Job:
    protocol, settings = study.protocol, plan.settings
    changes = {"split": protocol.report_split, "num_questions": protocol.report_questions}
    asked = settings.model_copy(
        update={
            "evaluation": settings.evaluation.model_copy(update=changes),
            "data": settings.data.model_copy(update={"test": (f"{settings.data.dataset}:{protocol.report_split}",)}),
        }
    )
    keys = _keys(study, plan)
    order = EvaluateOrder(
        source=plan.run,
        evaluations={key.run: key.iteration for key in keys},
        workspace=str(workspace.root),
        settings_json=asked.model_dump_json(),
    )
    name = f"{plan.run}-{protocol.report_split}"
    runs, title = tuple(key.run for key in keys), f"{name}: {len(keys)} policies answer"
    return study_job(study, workspace, name, runs, order, title)


def _keys(study: Study, plan: PlannedRun) -> list[StageKey]:
    """Return the evaluations of a run's policies, each in a run of its own."""
    return [
        StageKey(
            run=validate_run_name(f"{plan.run}-{study.protocol.report_split}-v{updates}"),
            iteration=updates,
            stage="evaluate",
        )
        for updates in _updates(study, plan.settings)
    ]


def _updates(study: Study, settings: Settings) -> list[int]:
    """Return after which updates policies are compared: none, and those of the protocol or of the evaluations."""
    every, last = settings.evaluation.every, settings.iterations
    named = study.protocol.updates or (*range(every, last, every), last)
    return sorted({0, *(updates for updates in named if updates <= last)})
