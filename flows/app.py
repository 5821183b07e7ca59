"""The command line `sdsearch`. Heavy libraries load inside the commands that need them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import typer
from rich.console import Console

from flows.ask.commands import ask
from flows.console.errors import PEOPLES_ERRORS
from flows.console.interrupts import SIGNALS_HELP
from flows.console.streams import prepare_streams
from flows.console.terminal import print_line
from flows.data.commands import data_app
from flows.doctor.commands import doctor
from flows.evaluation.commands import evaluate
from flows.export.commands import export
from flows.inspect.commands import db_app, inspect, report, runs, schema, show, sql
from flows.mini.commands import mini_app
from flows.orchestration.commands import up
from flows.plan.commands import plan
from flows.plugins.commands import plugins
from flows.replay.commands import replay
from flows.retrieval.commands import corpus_app, index_app, retriever_app
from flows.screen.commands import screen
from flows.settings.commands import config_app
from flows.study.commands import study
from flows.training.commands import join, resume, train
from flows.warmup.commands import warmup
from sdsearch.plugins import blaming_plugins

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
WORKING: tuple[Callable[..., None], ...] = (train, resume, join, warmup, replay, screen, study, evaluate)
READING: tuple[Callable[..., None], ...] = (
    ask,
    doctor,
    plan,
    export,
    runs,
    show,
    inspect,
    report,
    sql,
    plugins,
    up,
    schema,
)
for _command in WORKING:
    app.command(epilog=SIGNALS_HELP)(_command)
for _command in READING:
    app.command()(_command)
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
    """Run one command and return its exit code; errors that people can correct are one line and 2."""
    for name, value in _LIBRARY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        try:
            with blaming_plugins():
                app(list(arguments), prog_name="sdsearch")
        finally:
            sys.stdout.flush()  # Here it is seen whether the last lines have a reader.
    except PEOPLES_ERRORS as error:
        print_line(Console(stderr=True), f"error: {error}")
        return _EXIT_USER_ERROR
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


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
