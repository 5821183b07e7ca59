"""The command line `sdsearch`. Heavy libraries load inside the commands that need them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console

from flows.console.errors import PEOPLES_ERRORS, UserError
from flows.console.interrupts import SIGNALS_HELP
from flows.console.options import (
    HOME,
    ConfigArgument,
    ForkOption,
    NoPrefectOption,
    SetOption,
    WorkspaceOption,
    make_console,
)
from flows.console.streams import prepare_streams, stop_when_unread
from flows.console.terminal import print_line
from flows.mini.commands import data_app, db_app, index_app, mini_app, retriever_app
from flows.retrieval.commands import corpus_app
from flows.settings.commands import config_app

# Bars and hints of libraries would break the program's own output; torch's threads, while they wait in a spin, starve
# each other on a machine that does other work too (measured: 100 times slower). A value that is set already stays.
_LIBRARY_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
_EXIT_USER_ERROR = 2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="SD-Search: on-policy hindsight self-distillation for search-augmented reasoning (arXiv 2605.18299).",
)
app.add_typer(mini_app, name="mini")
app.add_typer(config_app, name="config")
app.add_typer(corpus_app, name="corpus")
app.add_typer(index_app, name="index")
app.add_typer(retriever_app, name="retriever")
app.add_typer(data_app, name="data")
app.add_typer(db_app, name="db")


def main() -> None:
    """Run the command line with the process's arguments, and end the process."""
    prepare_streams()
    _leave(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors that people can mend are one line and 2."""
    for name, value in _LIBRARY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        try:
            app(list(arguments), prog_name="sdsearch")
        finally:
            sys.stdout.flush()  # Here it is seen whether the last lines have a reader.
    except PEOPLES_ERRORS as error:
        print_line(Console(stderr=True), f"error: {error}")
        return _EXIT_USER_ERROR
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


@app.command(epilog=SIGNALS_HELP)
def train(
    config: ConfigArgument = "quickstart",
    overrides: SetOption = None,
    run: Annotated[str | None, typer.Option("--run", help="Name of the run; one is made when none is given.")] = None,
    fork: ForkOption = None,
    workspace: WorkspaceOption = HOME,
    no_prefect: NoPrefectOption = False,
) -> None:
    """Train a policy; a run of the same name and settings goes on where it stopped."""
    from flows.launch import start_run

    start_run(config, overrides or [], run, workspace, make_console(), use_prefect=not no_prefect, fork=fork)


@app.command(epilog=SIGNALS_HELP)
def resume(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    workspace: WorkspaceOption = HOME,
    no_prefect: NoPrefectOption = False,
    from_silent: Annotated[
        bool, typer.Option("--take-over", help="Take the run from a process on another machine that fell silent.")
    ] = False,
) -> None:
    """Go on with a run at the stage where it stopped, with its stored settings."""
    from flows.launch import continue_run

    continue_run(run, workspace, make_console(), use_prefect=not no_prefect, from_silent=from_silent)


@app.command(epilog=SIGNALS_HELP)
def replay(
    run: Annotated[str, typer.Argument(help="Name of the run whose rollouts are shown to another teacher.")],
    iterations: Annotated[
        str, typer.Option("--iterations", metavar="FIRST:LAST", help="Which iterations, both ends included.")
    ],
    overrides: SetOption = None,
    name: Annotated[
        str | None, typer.Option("--run", help="Name of the replay; one is made from the request when none is given.")
    ] = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Ask what if: the teacher again, on stored iterations, under other settings; nothing is sampled or trained."""
    from flows.launch import start_replay

    start_replay(run, iterations, overrides or [], name, workspace, make_console())


@app.command(epilog=SIGNALS_HELP)
def study(
    name: Annotated[
        str, typer.Argument(help="Name of a shipped study or of one in the workspace, or the path of a TOML file.")
    ] = "study_quick",
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing; table and curves from the runs that are finished.")
    ] = False,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Train variants over seeds in a plain loop and compare them; goes on where it stopped."""
    from flows.study.work import study_in_terminal

    study_in_terminal(name, workspace, make_console(), report_only=report_only)


@app.command(epilog=SIGNALS_HELP)
def evaluate(
    run: Annotated[str | None, typer.Option("--run", help="Evaluate a run's current policy.")] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", help="Evaluate a model folder or hub name; the settings' own by default.")
    ] = None,
    config: Annotated[str, typer.Option("--config", help="Settings that --policy is evaluated with.")] = "quickstart",
    overrides: SetOption = None,
    datasets: Annotated[
        str | None,
        typer.Option("--datasets", help="'all' of data.test, or some: nq,hotpotqa; data.dataset when not given."),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Split of data.dataset.")] = None,
    num_questions: Annotated[
        int | None, typer.Option("--num-questions", min=1, help="Size of each data set's fixed sample.")
    ] = None,
    mode: Annotated[Literal["greedy", "sampled"], typer.Option("--mode", help="Decoding.")] = "greedy",
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the evaluation; the same request gets the same one.")
    ] = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Answer questions with the plain policy and print the figures; goes on where it stopped."""
    from flows.evaluation.plan import Request
    from flows.launch import start_evaluation

    request = Request(datasets, split, num_questions, mode, name)
    start_evaluation(run, policy, config, overrides or [], request, workspace, make_console())


@app.command()
def doctor(
    config: ConfigArgument = "quickstart", overrides: SetOption = None, workspace: WorkspaceOption = HOME
) -> None:
    """Say what the settings need that is missing on this machine; exit code 1 when something is."""
    from flows.doctor.doctor import doctor as examine

    if not examine(config, overrides or [], workspace, make_console()):
        raise SystemExit(1)


@app.command()
def runs(workspace: WorkspaceOption = HOME) -> None:
    """List the runs of a workspace."""
    from flows.inspect.browse import open_existing, print_runs

    stop_when_unread()
    print_runs(open_existing(workspace, needs_database=False), make_console())


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    workspace: WorkspaceOption = HOME,
) -> None:
    """Show a run: its settings, the seconds of its stages, its learning curve."""
    from flows.inspect.browse import open_existing, print_run

    stop_when_unread()
    print_run(open_existing(workspace), run, make_console())


@app.command()
def sql(
    query: Annotated[str | None, typer.Argument(help="A query; it can read only.")] = None,
    list_queries: Annotated[bool, typer.Option("--list", help="List the queries that ship with the program.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Run a shipped query.")] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--param", metavar="NAME=VALUE", help="Value of $NAME in the query.")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="Run that a query with $run is asked of, a shipped one always.")
    ] = None,
    form: Annotated[
        Literal["table", "csv", "json"], typer.Option("--format", help="json: one object a line.")
    ] = "table",
    workspace: WorkspaceOption = HOME,
) -> None:
    """Query the database of a workspace; $run in the query is the latest run when --run names none."""
    from flows.inspect.browse import open_existing
    from flows.inspect.sql import print_canned, print_rows, run_query

    stop_when_unread()
    if list_queries:
        print_canned(make_console())
        return
    if (query is None) == (name is None):
        raise UserError("sql takes a query or the --name of a shipped one; see: sdsearch sql --list")
    notes = Console(stderr=True)
    answer = run_query(open_existing(workspace), query, name, parameters or [], run, form, notes)
    print_rows(answer, form, make_console())


@app.command()
def up(
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Port of the Prefect server [default: 4200].")
    ] = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Serve sdsearch/train and sdsearch-study/run, beside a local Prefect server if none answers.

    Ctrl-C, SIGTERM and SIGHUP let the runs under way say how they ended, then stop both.
    """
    from flows.orchestration.up import serve

    serve(port, workspace, make_console())


@app.command()
def schema(
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write one file a record to; printed when not given.")
    ] = None,
    settings: Annotated[bool, typer.Option("--settings", help="Print the settings reference, Markdown.")] = False,
) -> None:
    """Export the JSON schemas of the settings and of every record that is stored."""
    from flows.inspect.schema import print_schemas, settings_reference, write_schemas

    stop_when_unread()
    if settings and out is not None:
        raise UserError("schema --settings prints one page; leave --out out and redirect it to a file")
    if settings:
        sys.stdout.write(settings_reference())
    elif out is None:
        print_schemas()
    else:
        write_schemas(out, make_console())


def _leave(code: int) -> NoReturn:
    """End the process; at once where Prefect was used.

    Prefect's threads run on while the interpreter is torn down, which DuckDB's library then reports as leaks. All
    connections are closed, all files synced and all logs sent by now.
    """
    if "prefect" in sys.modules:
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
