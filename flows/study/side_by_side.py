"""The trainings of a study side by side: each in a process of its own, so many at a time.

A run's lock says whether somebody trains it, its files what is done: a study that was stopped, by Ctrl-C or by kill -9
of this process or of a worker, goes on where it stopped, and no run is trained twice. Each run has its own settings,
threads and seeds, so that the results are those of one run after another, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from flows.jobs.orders import Order, TrainOrder
from flows.jobs.processes import Job, JobFailure, Places, carry_out_jobs
from flows.run.cards import cards_of
from flows.study.alike import runs_alike
from flows.study.plan import PlannedRun
from flows.study.trainings import RunFailure, title_line
from schemas.records.study import Study
from storage.runs.studies import open_study_log
from storage.workspace import Workspace


class SideBySide:
    """Trains `num_workers` runs at a time, in the study's order; each writes to studies/NAME/logs/RUN.log."""

    def __init__(
        self,
        study: Study,
        workspace: Workspace,
        num_workers: int,
        tell: Callable[[str], None],
        figures_of: Callable[[PlannedRun], str],
    ) -> None:
        self._study = study
        self._workspace = workspace
        self._num_workers = num_workers
        self._tell = tell
        self._figures_of = figures_of

    def carry_out(self, planned: Sequence[PlannedRun], finished: Collection[str]) -> list[RunFailure]:
        """As of `Trainings`; an interrupt ends the workers, whose runs go on with the same command."""
        jobs = []
        for number, plan in enumerate(planned, 1):
            title = title_line(self._study, plan, number)
            if plan.run in finished:
                self._tell(f"{title}, finished already")
                continue
            order = TrainOrder(
                run=plan.run,
                workspace=str(self._workspace.root),
                settings_json=plan.settings.model_dump_json(),
                alike=runs_alike(planned, plan),
            )
            jobs.append(
                study_job(
                    self._study, self._workspace, plan.run, (plan.run,), order, title, partial(self._figures_of, plan)
                )
            )
        places = study_places(planned, self._num_workers)
        return study_failures(carry_out_jobs(jobs, self._workspace, places, self._tell))


def study_job(
    study: Study,
    workspace: Workspace,
    name: str,
    runs: tuple[str, ...],
    order: Order,
    title: str,
    figures: Callable[[], str] = lambda: "",
) -> Job:
    """Return a job of a study, which writes to studies/NAME/logs/JOB.log."""
    open_log = partial(open_study_log, workspace, study.name, name)
    return Job(name, f"run {name}", order, title, open_log, runs, figures)


def study_places(planned: Sequence[PlannedRun], num_workers: int) -> Places:
    """Return where a study's jobs are done: where its runs are on 'cuda', each place has a card of its own."""
    return Places.of(num_workers, cards_of(planned[0].settings.model.device))


def study_failures(failures: Sequence[JobFailure]) -> list[RunFailure]:
    """Return the failures of a study's jobs as those of its runs."""
    return [RunFailure(failure.name, failure.reason) for failure in failures]
