"""The commands that read a workspace: `sdsearch runs`, `show`, `sql`, `schema` and `sdsearch db …`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from flows.console.errors import UserError
from flows.console.options import (
    HOME,
    WorkspaceOption,
    make_console,
)
from flows.console.streams import stop_when_unread

db_app = typer.Typer(no_args_is_help=True, help="The database, which indexes the files.")


@db_app.command("rebuild")
def db_rebuild(workspace: WorkspaceOption = HOME) -> None:
    """Rebuild the database from the files of all runs; the former one is replaced."""
    from flows.inspect.db import rebuild

    rebuild(workspace, make_console())


@db_app.command("migrate")
def db_migrate(workspace: WorkspaceOption = HOME) -> None:
    """Bring the files of a workspace that an earlier version made to the layout of this one."""
    from flows.inspect.migrate import migrate

    migrate(workspace, make_console())


@db_app.command("check")
def db_check(workspace: WorkspaceOption = HOME) -> None:
    """Hash every file and compare files, ledger and database; exit code 1 when they do not agree."""
    from flows.inspect.db import check

    if not check(workspace, make_console()):
        raise SystemExit(1)


def runs(workspace: WorkspaceOption = HOME) -> None:
    """List the runs of a workspace."""
    from flows.inspect.browse import print_runs
    from storage.workspace import open_existing

    stop_when_unread()
    print_runs(open_existing(workspace, needs_database=False), make_console())


def show(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    iteration: Annotated[int | None, typer.Argument(min=0, help="An iteration: its groups.")] = None,
    group: Annotated[str | None, typer.Argument(help="A group of the iteration: its siblings, turn by turn.")] = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Show a run: its settings, the seconds of its stages, its learning curve; or an iteration; or one group."""
    from flows.inspect.browse import print_run
    from storage.workspace import open_existing

    stop_when_unread()
    opened, console = open_existing(workspace), make_console()
    if iteration is None:
        print_run(opened, run, console)
        return
    from flows.inspect.show_groups import print_group, print_groups

    if group is None:
        print_groups(opened, run, iteration, console)
    else:
        print_group(opened, run, iteration, group, console)


def inspect(
    run: Annotated[str | None, typer.Argument(help="Name of the run to open; all runs when not given.")] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="Port of the page; if not given 8900, or a free one."),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address and open nothing.")] = False,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Look into a workspace in a browser: runs, groups, and the credit of every query token; Ctrl-C ends it."""
    from flows.inspect.web.server import inspect as serve

    serve(run, workspace, port, make_console(), opens_browser=not no_browser)


def report(
    run: Annotated[str | None, typer.Argument(help="Name of the run.")] = None,
    study: Annotated[str | None, typer.Option("--study", help="Report a study instead: its name or its file.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File to write; if not given, the name with .html."),
    ] = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Write a run or a study as one HTML file: curves, figures with intervals, instructive groups, settings."""
    from flows.inspect.web.report import report as write

    write(run, study, out, workspace, make_console())


def sql(
    query: Annotated[str | None, typer.Argument(help="A query in SQL; it can only read.")] = None,
    list_queries: Annotated[bool, typer.Option("--list", help="List the queries that ship with the program.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Run a shipped query.")] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--param", metavar="NAME=VALUE", help="Value of $NAME in the query.")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="Run that $run in the query stands for; the latest run when not given.")
    ] = None,
    form: Annotated[
        Literal["table", "csv", "json"], typer.Option("--format", help="json: one object per line.")
    ] = "table",
    workspace: WorkspaceOption = HOME,
) -> None:
    """Query the database of a workspace; $run in the query is the latest run when --run names none."""
    from flows.inspect.sql import print_canned, print_rows, run_query
    from storage.workspace import open_existing

    stop_when_unread()
    if list_queries:
        print_canned(make_console())
        return
    if (query is None) == (name is None):
        raise UserError("sql takes a query or the --name of a shipped one; see: sdsearch sql --list")
    notes = Console(stderr=True)
    answer = run_query(open_existing(workspace), query, name, parameters or [], run, form, notes)
    print_rows(answer, form, make_console())


def schema(
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write one file per record to; printed when not given.")
    ] = None,
    settings: Annotated[bool, typer.Option("--settings", help="Print the settings reference, Markdown.")] = False,
    records: Annotated[bool, typer.Option("--records", help="Print the reference of the records, Markdown.")] = False,
    tables: Annotated[
        bool, typer.Option("--tables", help="Print the reference of tables and views, Markdown.")
    ] = False,
) -> None:
    """Export the JSON schemas of the settings and of every record that is stored, or print a reference page."""
    from flows.inspect.reference import records_reference, tables_reference
    from flows.inspect.schema import print_schemas, settings_reference, write_schemas

    stop_when_unread()
    pages = {"--settings": settings_reference, "--records": records_reference, "--tables": tables_reference}
    chosen = [name for name, on in zip(pages, (settings, records, tables), strict=True) if on]
    if len(chosen) > 1:
        raise UserError(f"schema prints one page at a time, not {' and '.join(chosen)}; leave out all but one")
    if chosen and out is not None:
        raise UserError(f"schema {chosen[0]} prints one page; leave --out out and redirect it to a file")
    if chosen:
        sys.stdout.write(pages[chosen[0]]())
    elif out is None:
        print_schemas()
    else:
        write_schemas(out, make_console())
