"""The commands that come in groups: `sdsearch mini …`, `sdsearch index …`, `sdsearch db …`, `sdsearch data …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.console.options import HOME, ConfigArgument, SetOption, WorkspaceOption, make_console
from flows.console.terminal import print_line

mini_app = typer.Typer(no_args_is_help=True, help="The mini policy that ships with the program.")
retriever_app = typer.Typer(no_args_is_help=True, help="The retriever as a server.")
index_app = typer.Typer(no_args_is_help=True, help="The search index.")
data_app = typer.Typer(no_args_is_help=True, help="The questions.")
db_app = typer.Typer(no_args_is_help=True, help="The database, which indexes the files.")


@mini_app.command("build")
def mini_build(
    out: Annotated[Path, typer.Option("--out", help="Folder to write the policy to.")] = Path("mini"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything that is random.")] = 0,
) -> None:
    """Make the mini policy again from the embedded world, and print what it can do."""
    from flows.mini.build import build

    build(out, seed, make_console())


@mini_app.command("measure")
def mini_measure(
    policy: Annotated[str, typer.Argument(help="Folder of the policy; 'mini' is the shipped one.")] = "mini",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the questions and the sampling.")] = 0,
) -> None:
    """Print what a mini policy can do: plain, on invented names, and with each kind of hindsight block."""
    from flows.mini.build import measure

    measure(policy, seed, make_console())


@index_app.command("build")
def index_build(
    config: ConfigArgument = "quickstart", overrides: SetOption = None, workspace: WorkspaceOption = HOME
) -> None:
    """Build the search indexes that the settings name; those that are there are replaced."""
    from flows.settings.load import load_settings

    settings = load_settings(config, overrides or [])
    from flows.console.errors import UserError
    from flows.retrieval.open import build_indexes
    from schemas.settings.retrieval import HttpRetrievalSettings
    from storage.workspace import Workspace

    if isinstance(settings.retrieval, HttpRetrievalSettings):
        raise UserError("retrieval.kind 'http' has its index on a server; build one with kind dense, bm25 or hybrid")
    for report in build_indexes(settings.retrieval, Workspace.open(workspace)):
        print_line(
            make_console(),
            f"{report.folder}: {report.num_passages} passages, {report.size}, {report.duration_s:.1f} s",
        )


@retriever_app.command("serve")
def retriever_serve(
    config: ConfigArgument = "quickstart",
    host: Annotated[str, typer.Option("--host", help="Address to listen on; others than loopback are open.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    max_queries: Annotated[
        int, typer.Option("--max-queries", min=1, help="Queries of one request; more are searched in pieces anyway.")
    ] = 16_384,
    max_top_k: Annotated[int, typer.Option("--max-topk", min=1, help="Passages a query that may be asked for.")] = 100,
    max_request_mb: Annotated[int, typer.Option("--max-request-mb", min=1, help="Size of one request.")] = 64,
    overrides: SetOption = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Serve the settings' retriever over HTTP (Search-R1's /retrieve) until Ctrl-C, SIGTERM or SIGHUP."""
    from flows.retrieval.serve import serve_retriever

    limits = {"max_queries": max_queries, "max_top_k": max_top_k, "max_request_bytes": max_request_mb << 20}
    serve_retriever(config, overrides or [], workspace, host, port, make_console(), limits)


@db_app.command("rebuild")
def db_rebuild(workspace: WorkspaceOption = HOME) -> None:
    """Make the database again from the files of all runs; whatever is in its place goes."""
    from flows.inspect.db import rebuild

    rebuild(workspace, make_console())


@db_app.command("check")
def db_check(workspace: WorkspaceOption = HOME) -> None:
    """Hash every file and compare files, ledger and database; exit code 1 when they do not agree."""
    from flows.inspect.db import check

    if not check(workspace, make_console()):
        raise SystemExit(1)


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
