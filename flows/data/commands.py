"""The commands `sdsearch data …`."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.console.options import HOME, ConfigArgument, SetOption, WorkspaceOption, make_console

data_app = typer.Typer(no_args_is_help=True, help="The questions.")


@data_app.command("prepare")
def data_prepare(
    config: ConfigArgument = "quickstart", overrides: SetOption = None, workspace: WorkspaceOption = HOME
) -> None:
    """Read and check every data set that the settings name, and keep its questions in the workspace."""
    from flows.data.prepare import prepare
    from flows.settings.load import load_settings
    from storage.storage import Storage
    from storage.workspace import Workspace

    settings = load_settings(config, overrides or [])
    prepare(settings, Storage(Workspace.open(workspace), settings.storage.database_deadline_s), make_console())


@data_app.command("answerability")
def data_answerability(
    config: ConfigArgument = "quickstart",
    datasets: Annotated[
        str | None,
        typer.Option(
            "--datasets",
            help="'all' for data.test, or names such as nq,hotpotqa:dev; all that the settings evaluate on when not "
            "given.",
        ),
    ] = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Count the questions with a golden answer in any passage, and in the passages that the question itself finds."""
    from flows.evaluation.answerability import count_and_print
    from flows.settings.load import load_settings
    from storage.storage import Storage
    from storage.workspace import Workspace

    settings = load_settings(config, overrides or [])
    storage = Storage(Workspace.open(workspace), settings.storage.database_deadline_s)
    count_and_print(settings, datasets, storage, make_console())
