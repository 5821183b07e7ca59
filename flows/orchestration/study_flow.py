"""A study as Prefect sees it: flow `sdsearch-study`, each training a sub-flow `sdsearch`."""

from __future__ import annotations

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.orchestration.alarms import artifact_key
from flows.orchestration.pool import OnPool
from flows.orchestration.train_flow import PrefectRun, workspace_folder
from flows.run.progress import SilentReporter
from flows.study.plan import PlannedRun, load_study
from flows.study.show import table_markdown
from flows.study.trainings import OneByOne, Trainings
from flows.study.work import carry_out
from flows.training.job import open_job
from storage.workspace import Workspace


@flow(name="sdsearch-study", flow_run_name="{study}", persist_result=False, validate_parameters=False)
def study_flow(study: str = "study_quick", workspace: str | None = None, pool: str | None = None) -> str:
    """Train a study's variants over its seeds and compare them; continue where it stopped.

    Args:
        study: Name of a shipped study or of one in the workspace, or the path of a TOML file.
        workspace: Folder of the database and the files; SDSEARCH_HOME or ./workspace when it is empty.
        pool: Work pool that the trainings are submitted to, as flow runs of sdsearch/train; here when it is empty.

    Returns:
        The folder of the study's table.
    """
    opened = Workspace.open(workspace_folder(workspace))
    loaded = load_study(study, opened)

    def train(plan: PlannedRun) -> None:
        job = open_job(plan.run, opened.root, plan.settings, plan.config, plan.overrides)
        prefect_run = PrefectRun(job, SilentReporter())
        prefect_run.flow(**prefect_run.parameters)

    # Prefect shows each sub-flow by itself; what a finished run did stands under its own flow run.
    trainings: Trainings = OneByOne(train, lambda plan, place, finished: None)
    if pool:
        trainings = OnPool(loaded, opened, pool, get_run_logger().info)
    results = carry_out(loaded, opened, trainings).checked(loaded, opened)
    create_markdown_artifact(table_markdown(results), key=f"{artifact_key(loaded.name)}-study")
    return str(opened.study_folder(loaded.name))
