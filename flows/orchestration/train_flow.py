"""The same run as Prefect sees it: flow `sdsearch`, a sub-flow an iteration, a task a stage.

Tasks pass small records, cache nothing and retry nothing: the ledger is the one truth about what is done.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow, flow, get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.console.errors import UserError
from flows.console.interrupts import resume_command
from flows.orchestration.alarms import artifact_key, publish_alarm
from flows.orchestration.artifacts import summary_markdown
from flows.orchestration.log_reporter import LogReporter
from flows.orchestration.recovery import RUN_FLOW, WhileItAnswers, crash_former_runs, is_of_server
from flows.run.progress import Reporter, SilentReporter
from flows.settings.load import load_settings, new_run_name
from flows.training.iteration import PLAIN, Stage, Stages, Training
from flows.training.job import Job, open_job
from flows.training.loop import Evaluate, Iterate, RunHooks, drive
from flows.training.numbers import iteration_numbers
from schemas.records.ledger import RunWarning

_CONFIG = "quickstart"
logger = logging.getLogger(__name__)


def _as_task(stage: Stage, tag: str) -> Stage:
    name = stage.__name__.replace("_", " ")
    # No tags: Prefect asks its server for a concurrency slot for each tag of a task, which takes two seconds.
    as_task = task(
        name=name,
        task_run_name=f"{tag} {{iteration}}",
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=0,
    )
    return as_task(stage)


TASKS = Stages(*(_as_task(stage, stage.__name__.split("_")[0]) for stage in PLAIN))


def name_of_run() -> str:
    """Return the name of the current flow run and of the run that it trains, the same at each retry.

    A run that was given no name is called after its settings, when its flow run was made, and the flow run's id.
    """
    context = FlowRunContext.get()
    assert context is not None, "inside a flow run"
    assert context.flow_run is not None, "inside a flow run"
    parameters = context.parameters or {}
    if parameters.get("run"):
        return str(parameters["run"])
    stem = new_run_name(parameters.get("config", _CONFIG), context.flow_run.created)
    return f"{stem}-{context.flow_run.id.hex[-4:]}"


@flow(name=RUN_FLOW, flow_run_name=name_of_run, persist_result=False, validate_parameters=False)
def train_flow(
    config: str = _CONFIG,
    run: str | None = None,
    overrides: list[str] | None = None,
    workspace: str | None = None,
    resume: bool = False,
) -> str:
    """Train a policy by SD-Search; a run that exists continues where it stopped.

    Args:
        config: Name of a shipped settings file (quickstart, tiny, paper_3b, …), or the path of a TOML file.
        run: Name of the run. One is made from the config and the flow run when it is empty.
        overrides: Settings that differ from the config, one `section.key=value` a line: `iterations=50`,
            `distillation.alpha=0.01`, `data.questions_per_iteration=32`. The value is TOML; a bare word is a text.
        workspace: Folder of the database and the files; SDSEARCH_HOME or ./workspace when it is empty.
        resume: Go on with the run of this name, with its stored settings: config and overrides are not read.

    Returns:
        The run's name.
    """
    settings = None if resume else load_settings(config, overrides or [])
    job = open_job(run or name_of_run(), workspace_folder(workspace), settings, config, tuple(overrides or ()))
    return PrefectRun(job, SilentReporter()).train()


def workspace_folder(parameter: str | None) -> Path:
    """Return the workspace that a flow run's parameter names; SDSEARCH_HOME or ./workspace when it is empty.

    Raises UserError for what prefect.yaml leaves there when it is deployed without SDSEARCH_HOME.
    """
    if parameter and "{{" in parameter:
        raise UserError(
            f"workspace is {parameter!r}: SDSEARCH_HOME was not set when the flows were deployed; set it to the "
            "absolute path of the workspace and deploy again"
        )
    return Path(parameter or os.environ.get("SDSEARCH_HOME", "workspace"))


class PrefectRun:
    """A job as Prefect does it in this process: `flow(**parameters)` is a flow run `sdsearch`.

    The flow is of this job alone, which never passes through Prefect. `unseen` names what Prefect has no record of,
    since its server did not answer: training does not wait for it.
    """

    def __init__(self, job: Job, reporter: Reporter) -> None:
        self.job = job
        self.unseen: list[str] = []
        self._reporter = reporter
        self._is_trained = False

    @property
    def flow(self) -> Flow[..., str]:
        """The flow that trains the job."""
        as_flow = flow(name=RUN_FLOW, flow_run_name=name_of_run, persist_result=False, validate_parameters=False)
        return as_flow(self.train)

    @property
    def parameters(self) -> dict[str, Any]:
        """What `train_flow` would make this job from: Prefect shows it, and finds a workspace's flow runs by it."""
        job = self.job
        return {
            "config": job.config,
            "run": job.run,
            "overrides": list(job.overrides),
            "workspace": str(job.storage.workspace.root),
            "resume": job.resumes,
        }

    def train(
        self,
        config: str = "",
        run: str = "",
        overrides: Sequence[str] = (),
        workspace: str = "",
        resume: bool = False,
    ) -> str:
        """Train a policy by SD-Search; a run that exists continues where it stopped. Returns the run's name.

        The parameters are for Prefect alone: they say what the job was made from.
        """
        job = self.job
        # The run's own flow tells Prefect that it lives; a sub-flow's heartbeat would hold up its end for a second.
        no_heartbeat = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
        with _served(job), _Shown(job, self._reporter, self.unseen) as shown, no_heartbeat:
            drive(job, shown.reporter, shown)
        self._is_trained = True
        return job.run

    @contextmanager
    def end_may_be_unseen(self) -> Iterator[None]:
        """Take an error of the server after the run was done for what it is: Prefect does not know the end."""
        try:
            yield
        except Exception as error:
            if not self._is_trained or not is_of_server(error):
                raise
            self.unseen.append("the end of the run")


@contextmanager
def _served(job: Job) -> Iterator[None]:
    """Ignore Ctrl-C in a process that a runner started, and say in the flow run's log how an interrupted run goes on.

    A terminal sends Ctrl-C, and SIGHUP when it is closed, to the runner's processes too, which end by the runner's
    SIGTERM alone.
    """
    if deployment.id is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    except Exception:
        raise
    except BaseException:
        get_run_logger().warning("interrupted; continue with: %s", resume_command(job.run, job.storage.workspace.root))
        raise
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class _Shown(RunHooks):
    """Iterations as sub-flows, the run's lines in the flow run's log, its figures and its progress as artifacts.

    The figures are published by a thread beside the next iteration; what could not be published is counted and told
    at the end, since a run must not fail for it.
    """

    def __init__(self, job: Job, reporter: Reporter, unseen: list[str]) -> None:
        self._job = job
        self._run = job.run
        self._prefect = WhileItAnswers(unseen)
        self.reporter = LogReporter(reporter, get_run_logger(), lambda: self._prefect.answers)
        self._rows: dict[int, dict[str, float]] = {}
        self._key = artifact_key(job.run)
        created = create_progress_artifact(0.0, key=f"{self._key}-progress", description=f"run {job.run}")
        assert isinstance(created, UUID), "outside an event loop the call returns the id itself"
        self._progress_id = created
        self._num_iterations = job.num_iterations
        self._publisher = ThreadPoolExecutor(max_workers=1)
        self._published: list[Future[None]] = []

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self._publisher.shutdown(wait=True)
        failed = [future for future in self._published if future.exception() is not None]
        if failed:
            logger.warning(
                "the figures of %d iterations are not among Prefect's artifacts (%s); they are in the database",
                len(failed),
                failed[0].exception(),
            )

    def held(self) -> None:
        """Set the flow runs Crashed that died with their process."""
        own_id = flow_run.id
        try:
            num_crashed = crash_former_runs(self._job.storage.workspace, self._run, UUID(own_id) if own_id else None)
        except Exception as error:
            if not is_of_server(error):
                raise
            num_crashed = 0  # They can be set Crashed when the server is back.
        if num_crashed:
            logger.info("%d flow runs of run '%s' are Crashed: their process died", num_crashed, self._run)

    def parts(self, training: Training) -> tuple[Evaluate, Iterate]:
        """Return the stages as tasks, and each iteration as a sub-flow of them."""
        as_tasks = replace(training, do=TASKS)
        as_flow = flow(
            name="sdsearch-iteration",
            flow_run_name=f"{self._run}-{{iteration}}",
            persist_result=False,
            validate_parameters=False,
        )
        return (
            partial(self._prefect.do, "the first evaluation", as_tasks.evaluate, training.evaluate),
            partial(self._prefect.do, "iteration {}", as_flow(as_tasks.iterate), training.iterate),
        )

    def show(self, iteration: int, numbers: dict[str, float]) -> None:
        """Publish the figures of an iteration."""
        if self._prefect.answers:
            # Those of iterations that are done already are in the database, when a run is resumed.
            self._rows = self._rows or iteration_numbers(self._job.storage, self._run, 1, iteration)
            self._rows[iteration] = numbers
            # The artifacts belong to this flow run, which the thread learns from the context.
            self._published.append(self._publisher.submit(copy_context().run, self._publish, iteration, {**self._rows}))

    def alarmed(self, alarm: RunWarning) -> None:
        """Publish an alarm: an event `sdsearch.alarm`, which automations can react to, and an artifact."""
        if self._prefect.answers:
            self._published.append(self._publisher.submit(copy_context().run, publish_alarm, self._run, alarm))

    def goes_on(self, job: Job) -> None:
        """Show the fork that takes the run's place under this flow run."""
        self._job, self._run, self._key, self._rows = job, job.run, artifact_key(job.run), {}

    def _publish(self, iteration: int, rows: dict[int, dict[str, float]]) -> None:
        table = [{"metric": name, "value": value} for name, value in sorted(rows[iteration].items())]
        create_table_artifact(table, key=f"{self._key}-metrics", description=f"iteration {iteration}")
        create_markdown_artifact(summary_markdown(self._run, self._num_iterations, rows), key=f"{self._key}-summary")
        update_progress_artifact(self._progress_id, 100.0 * iteration / self._num_iterations)
