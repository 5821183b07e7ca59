"""Signals: a write is finished first, SIGTERM unwinds as Ctrl-C does, and the person is told how to go on."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from flows.console.interrupts import SIGNALS_HELP, Terminated, is_ignored, resumable, terminable
from flows.run.status import shown_status
from storage.database.connection import Database
from storage.disk.files import write_json_atomic
from storage.disk.signals import handler_errors_kept, signals_deferred
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.workspace import Workspace

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def handlers_are_put_back() -> Iterator[None]:
    """Begin as a program in a terminal does, whatever this process inherited, and end with the same handlers."""
    wanted = [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]
    inherited = [signal.signal(number, handler) for number, handler in zip(SIGNALS, wanted, strict=True)]
    yield
    after = [signal.signal(number, handler) for number, handler in zip(SIGNALS, inherited, strict=True)]
    assert after == wanted


def send_inside_two_blocks(number: signal.Signals, done: list[str]) -> None:
    with signals_deferred():
        with signals_deferred():
            os.kill(os.getpid(), number)
            done.append("inner")
        done.append("outer")
    done.append("after")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_for_the_end_of_the_block_and_then_acts(number: signal.Signals) -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), terminable():
        send_inside_two_blocks(number, done)
    assert done == ["inner", "outer"]


def test_an_error_in_the_block_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="disk"), signals_deferred():
        raise ValueError("disk")


def test_in_another_thread_nothing_is_held_back() -> None:
    seen: list[object] = []

    def work() -> None:
        with signals_deferred():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


LONG_QUERY = "SELECT sum(range) FROM range(1000000000000)"
LONG_JOIN = "SELECT count(*) FROM range(3000000) a, range(3000000) b WHERE a.range % 7 = b.range % 5"


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("ask", "sql"),
    [
        (Database.query, LONG_QUERY),
        (Database.read_only_user_query, LONG_QUERY),
        (Database.read_only_user_table, LONG_JOIN),
    ],
    ids=["ours", "a person's", "a person's join"],
)
def test_a_query_under_way_ends_as_the_signal_says(
    ask: Callable[[Database, str], object], sql: str, number: signal.Signals, tmp_path: Path
) -> None:
    database = Database(Workspace.open(tmp_path))
    database.query("SELECT 1")
    sender = threading.Timer(0.2, os.kill, [os.getpid(), number])
    sender.start()
    with pytest.raises(KeyboardInterrupt), terminable():
        ask(database, sql)
    assert database.query("SELECT 1 AS one").to_pylist() == [{"one": 1}]


def test_a_failed_query_without_a_signal_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="Query interrupted"), handler_errors_kept():
        raise RuntimeError("Query interrupted")


def test_what_a_handler_raised_is_not_lost_where_the_block_swallows_it() -> None:
    def inside() -> None:
        with handler_errors_kept(), suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        inside()


def test_a_file_that_is_being_written_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def interrupted(descriptor: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_json_atomic(tmp_path / "value.json", {"a": 1}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


def interrupt_a_transaction(database: Database) -> None:
    with database.transaction() as connection:
        os.kill(os.getpid(), signal.SIGINT)
        connection.execute("UPDATE workspace SET created_at = TIMESTAMP '2000-01-01'")


def test_a_transaction_is_finished(tmp_path: Path) -> None:
    database = Database(Workspace.open(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        interrupt_a_transaction(database)
    assert database.query("SELECT year(created_at) AS year FROM workspace").to_pylist() == [{"year": 2000}]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_program_ends_with_the_signals_code_and_says_how_to_go_on(number: signal.Signals, code: int) -> None:
    assert {number.name, str(code)} <= set(re.findall(r"\w+", SIGNALS_HELP))
    said = io.StringIO()
    with pytest.raises(SystemExit) as end, resumable(Console(file=said), "sdsearch resume first"):
        os.kill(os.getpid(), number)
    assert end.value.code == code
    assert said.getvalue() == "interrupted; continue with: sdsearch resume first\n"


def test_sigterm_is_an_interrupt() -> None:
    with pytest.raises(Terminated), terminable():
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_was_ignored_stays_ignored(number: signal.Signals) -> None:
    former = signal.signal(number, signal.SIG_IGN)
    try:
        with resumable(Console(file=io.StringIO()), "x"), signals_deferred():
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert is_ignored(number)
    finally:
        signal.signal(number, former)


PROGRAM = """
import sys, time
from pathlib import Path
from rich.console import Console
from flows.console.interrupts import resumable
from flows.run.status import tracked_status
from storage.storage import Storage
from storage.runs.lock import RunLock
from storage.workspace import Workspace
from tests.support.records import make_run

storage = Storage(Workspace.open(Path(sys.argv[1])))
with resumable(Console(), "sdsearch resume first"), RunLock(storage.workspace, "first"):
    storage.create_run(make_run("first"))
    with tracked_status(storage, "first"):
        print("ready", flush=True)
        time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("start", "sent", "code", "status"),
    [
        ("", ["SIGHUP"], 129, "interrupted"),
        ("", ["SIGINT", "SIGINT"], 130, "interrupted"),
        ("", ["SIGKILL"], -9, "running"),
        ("trap '' INT HUP; ", ["SIGINT", "SIGHUP"], 0, "done"),
    ],
)
def test_what_the_help_says_of_signals(start: str, sent: list[str], code: int, status: str, tmp_path: Path) -> None:
    seconds = "2" if start else "60"
    words = [sys.executable, "-c", PROGRAM, str(tmp_path), seconds]
    command = ["bash", "-c", f'{start}exec "$@"', "bash", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for name in sent:
            process.send_signal(getattr(signal, name))
        said = process.stdout.read()
    assert process.returncode == code
    assert ("continue with: sdsearch resume first" in said) == (status == "interrupted")
    workspace = Workspace.open(tmp_path)
    record = Ledger(ArtifactStore(workspace)).get_run("first")
    assert record.status == status
    assert shown_status(workspace, record) == ("dead; resume" if status == "running" else status)
