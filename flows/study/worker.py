"""The process of one training of a study: `python -m flows.study.worker`, started by `flows.study.side_by_side`.

It reads which run to train as one line of JSON from its input. The input stays open as long as the study's own process
lives: at its end the training is interrupted as by SIGTERM, so that no training outlives its study.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TextIO

from pydantic import Field
from rich.console import Console

from flows.console.errors import PEOPLES_ERRORS
from flows.console.interrupts import Terminated, terminable
from flows.console.options import make_console
from flows.console.streams import prepare_streams
from flows.console.terminal import print_line
from flows.run.progress import RichReporter
from schemas.base import Record
from schemas.settings.root import STORED, Settings

ERROR_PREFIX = "error: "
_EXIT_USER_ERROR = 2


class Order(Record):
    """What a worker trains."""

    run: str = Field(description="Name of the run.")
    workspace: str = Field(description="Absolute path of the workspace.")
    settings_json: str = Field(description="All settings of the run.")


def main() -> None:
    """Train the run that the first line of the input names; exit code as of `sdsearch train`."""
    prepare_streams()
    order = Order.model_validate_json(sys.stdin.readline())
    raise SystemExit(carry_out(order, make_console(), sys.stdin))


def carry_out(order: Order, console: Console, until: TextIO) -> int:
    """Train a run until it is done or `until` ends; return the exit code, 128 + n after signal n."""
    try:
        with terminable():
            threading.Thread(target=_end_with, args=(until,), daemon=True).start()
            from flows.training.loop import train_plain

            # Checked by the study already, which may know plugins' options by now.
            settings = Settings.model_validate_json(order.settings_json, context=STORED)
            with RichReporter(None, console) as reporter:
                train_plain(settings, order.run, Path(order.workspace), reporter)
    except KeyboardInterrupt as error:
        print_line(console, "interrupted")
        return 128 + (error.number if isinstance(error, Terminated) else signal.SIGINT)
    except PEOPLES_ERRORS as error:
        print_line(console, f"{ERROR_PREFIX}{error}")
        return _EXIT_USER_ERROR
    return 0


def _end_with(stream: TextIO) -> None:
    stream.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
