"""The process of one job, such as a training of a study: `python -m flows.jobs.worker`.

It reads what to do as one line of JSON from its input. The input stays open as long as the process that ordered it
lives: at its end the work is interrupted as by SIGTERM, so that no job outlives who ordered it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TextIO, assert_never

from rich.console import Console

from flows.console.errors import PEOPLES_ERRORS
from flows.console.interrupts import Terminated, terminable
from flows.console.options import make_console
from flows.console.streams import prepare_streams
from flows.console.terminal import print_line
from flows.evaluation.plan import EvaluationPlan
from flows.jobs.orders import ERROR_PREFIX, ORDERS, AnswerOrder, EmbedOrder, EvaluateOrder, Order, TrainOrder
from flows.run.progress import RichReporter
from schemas.settings.root import STORED, Settings
from storage.storage import Storage
from storage.workspace import Workspace

_EXIT_USER_ERROR = 2


def main() -> None:
    """Do what the first line of the input orders; exit code as of `sdsearch train`."""
    prepare_streams()
    order = ORDERS.validate_json(sys.stdin.readline())
    raise SystemExit(carry_out(order, make_console(), sys.stdin))


def carry_out(order: Order, console: Console, until: TextIO) -> int:
    """Do an order until it is done or `until` ends; return the exit code, 128 + n after signal n."""
    try:
        with terminable():
            threading.Thread(target=_end_with, args=(until,), daemon=True).start()
            _work(order, console)
    except KeyboardInterrupt as error:
        print_line(console, "interrupted")
        return 128 + (error.number if isinstance(error, Terminated) else signal.SIGINT)
    except PEOPLES_ERRORS as error:
        print_line(console, f"{ERROR_PREFIX}{error}")
        return _EXIT_USER_ERROR
    return 0


def _work(order: Order, console: Console) -> None:
    workspace = Workspace.open(order.workspace)
    if isinstance(order, EmbedOrder):
        from flows.retrieval.embed_workers import embed_share

        embed_share(order, workspace)
        return
    # Checked already by who ordered it, whose plugins have completed their options.
    settings = Settings.model_validate_json(order.settings_json, context=STORED)
    storage = Storage(workspace, settings.storage.database_deadline_s)
    match order:
        case TrainOrder():
            from flows.study.alike import take_over_start
            from flows.training.loop import train_plain

            take_over_start(storage, order.run, order.alike)
            with RichReporter(None, console) as reporter:
                train_plain(settings, order.run, Path(order.workspace), reporter)
        case EvaluateOrder():
            from flows.evaluation.work import evaluate

            for name, version in order.evaluations.items():
                with RichReporter(None, console) as reporter:
                    evaluate(EvaluationPlan(name, order.source, version, settings), storage, reporter)
        case AnswerOrder():
            from flows.evaluation.share import answer_share

            answer_share(order, settings, storage)
        case unknown:
            assert_never(unknown)


def _end_with(stream: TextIO) -> None:
    stream.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
