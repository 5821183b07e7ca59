"""The commands `sdsearch corpus …`, `sdsearch index …` and `sdsearch retriever …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.console.options import HOME, ConfigArgument, SetOption, WorkspaceOption, make_console
from flows.console.streams import stop_when_unread
from flows.console.terminal import print_line

retriever_app = typer.Typer(no_args_is_help=True, help="The retriever as a server.")
index_app = typer.Typer(no_args_is_help=True, help="The search index.")
corpus_app = typer.Typer(no_args_is_help=True, help="Corpora: the passages that are searched.")


@corpus_app.command("import")
def corpus_import(
    file: Annotated[Path, typer.Argument(help='Search-R1 jsonl of {"id", "contents"} rows; also .gz or .zst.')],
    max_bad_rows: Annotated[
        int, typer.Option("--max-bad-rows", min=0, help="Broken rows that may be left out; more are an error.")
    ] = 1000,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Import a corpus into the workspace, in bounded memory; rows that are broken are left out and counted."""
    from flows.retrieval.show import import_in_terminal

    import_in_terminal(file, workspace, max_bad_rows, make_console())


@corpus_app.command("list")
def corpus_list(workspace: WorkspaceOption = HOME) -> None:
    """List the imported corpora of a workspace."""
    from flows.retrieval.show import print_corpora

    stop_when_unread()
    print_corpora(workspace, make_console())


@corpus_app.command("embed")
def corpus_embed(
    config: ConfigArgument = "quickstart",
    num_shards: Annotated[
        int | None, typer.Option("--shards", min=1, help="Number of shards; one for each 100,000 passages by default.")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="FIRST:LAST", help="Only these shards, both ends included, from 0.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that encode, shard by shard.")] = 1,
    overrides: SetOption = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Encode the settings' corpus in shards; continue where it stopped, and share the work with other processes."""
    from flows.settings.load import load_settings

    settings = load_settings(config, overrides or [])
    from flows.retrieval.show import embed_in_terminal

    embed_in_terminal(settings.retrieval, workspace, num_shards, only, make_console(), workers)


@index_app.command("evaluate")
def index_evaluate(
    config: ConfigArgument = "quickstart",
    kinds: Annotated[
        str, typer.Option("--kinds", help="Kinds to compare, separated by commas.")
    ] = "flat,hnsw,ivf_sq,ivf_pq",
    queries: Annotated[
        str,
        typer.Option(
            "--queries", metavar="N|FILE", help="Number of training questions, or a file with one query per line."
        ),
    ] = "500",
    out: Annotated[Path | None, typer.Option("--out", help="File to write the table to, as JSON.")] = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Compare indexes of the settings' corpus with exact search: recall, queries/s, memory; builds what is missing."""
    from flows.settings.load import load_settings

    settings = load_settings(config, overrides or [])
    from flows.retrieval.compare import evaluate_indexes

    evaluate_indexes(settings, workspace, kinds, queries, out, make_console())


@index_app.command("estimate")
def index_estimate(
    num_passages: Annotated[int, typer.Option("--passages", min=1, help="Passages of the corpus.")] = 21_015_324,
    num_dimensions: Annotated[int, typer.Option("--dim", min=8, help="Width of the encoder's vectors.")] = 768,
    ram_gb: Annotated[float | None, typer.Option("--ram-gb", min=0.1, help="Memory that the index may take.")] = None,
) -> None:
    """Estimate memory, disk and time of each kind of index, from small measurements on this machine."""
    from flows.retrieval.costs import print_costs

    stop_when_unread()
    print_costs(num_passages, num_dimensions, ram_gb, make_console())


@index_app.command("build")
def index_build(
    config: ConfigArgument = "quickstart", overrides: SetOption = None, workspace: WorkspaceOption = HOME
) -> None:
    """Build the search indexes that the settings name; those that are there are replaced."""
    from flows.settings.load import load_settings

    settings = load_settings(config, overrides or [])
    from flows.console.errors import UserError
    from flows.retrieval.open import build_indexes
    from schemas.settings.retrieval import HttpRetrievalSettings, PluginRetrievalSettings
    from storage.workspace import Workspace

    if isinstance(settings.retrieval, HttpRetrievalSettings | PluginRetrievalSettings):
        raise UserError(
            f"retrieval.kind '{settings.retrieval.kind}' has no index here; build one with kind dense, bm25 or hybrid"
        )
    for report in build_indexes(settings.retrieval, Workspace.open(workspace)):
        print_line(
            make_console(),
            f"{report.folder}: {report.num_passages} passages, {report.size}, {report.duration_s:.1f} s",
        )


@retriever_app.command("serve")
def retriever_serve(
    config: ConfigArgument = "quickstart",
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; others than loopback are reachable by other machines.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    max_queries: Annotated[
        int, typer.Option("--max-queries", min=1, help="Queries in one request; large requests are searched in parts.")
    ] = 16_384,
    max_top_k: Annotated[int, typer.Option("--max-topk", min=1, help="Largest number of passages per query.")] = 100,
    max_request_mb: Annotated[int, typer.Option("--max-request-mb", min=1, help="Size of one request.")] = 64,
    overrides: SetOption = None,
    workspace: WorkspaceOption = HOME,
) -> None:
    """Serve the settings' retriever over HTTP (Search-R1's /retrieve) until Ctrl-C, SIGTERM or SIGHUP."""
    from flows.retrieval.serve import serve_retriever

    limits = {"max_queries": max_queries, "max_top_k": max_top_k, "max_request_bytes": max_request_mb << 20}
    serve_retriever(config, overrides or [], workspace, host, port, make_console(), limits)
