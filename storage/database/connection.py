"""The DuckDB file: a queryable index of the workspace's files, opened for moments only.

DuckDB lets one process write and then refuses all others, and a reader refuses the writer. So connections are
short, never across a stage, and wait for their turn with a jittered retry until a deadline. Within a process an
in-memory instance stays, and the file is attached to it and detached again, which takes a fifth of the time.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential

from storage.database.failures import describe_failure, describe_holder, is_broken, way_out
from storage.database.interruptible import interruptible
from storage.database.query_results import Answer, Form, answer_of, check_parameters, parameters_of, query_error
from storage.database.tables import create_tables
from storage.disk.signals import handler_errors_kept, signals_deferred
from storage.errors import DatabaseBusyError, DatabaseUnusableError
from storage.workspace import Workspace

SCHEMA_VERSION = 19
STORAGE_VERSION = "v1.5.0"  # What the current `duckdb` command-line client can open.
LOG_SIZE = "128KB"  # Beyond it a commit writes the log into the file; every opening reads what is left of it.
_BUSY = re.compile(r"Could not set lock on file|Unique file handle conflict")
_Connection = duckdb.DuckDBPyConnection
T = TypeVar("T")


class Database:
    """Opens the workspace's database file, which is made with all tables on first use.

    `deadline_s`: how long to wait for other processes and threads before DatabaseBusyError; `path`: another file than
    the workspace's own; `read_only`: nothing is ever written, not even the tables.
    """

    def __init__(
        self, workspace: Workspace, deadline_s: float = 60.0, path: Path | None = None, *, read_only: bool = False
    ) -> None:
        self.path = path or workspace.database
        self.deadline_s = deadline_s
        self._turn = threading.Lock()
        self._instance: _Connection | None = None
        self._checked = False
        self._read_only = read_only

    @contextmanager
    def transaction(self, wait_s: float | None = None) -> Iterator[_Connection]:
        """Give the one writing connection inside a transaction: committed at the end, dropped on an error.

        Keep it short. Raises DatabaseBusyError after `wait_s` (default: the deadline), DatabaseUnusableError for a
        file that is damaged or cannot be written.
        """
        with self._attached(read_only=False, wait_s=wait_s) as connection:
            _prepare(connection, self.path.as_posix())
            self._checked = True
            with signals_deferred():
                connection.execute("BEGIN")
                yield connection
                connection.execute("COMMIT")

    @contextmanager
    def read(self, wait_s: float | None = None) -> Iterator[_Connection]:
        """Give a read-only connection; keep it short, since it keeps the writer out."""
        self._ensure(wait_s)
        with self._attached(read_only=True, wait_s=wait_s) as connection:
            yield connection

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None, wait_s: float | None = None) -> pa.Table:
        """Return a query's rows; `parameters` fill `$name` in the SQL."""
        with self.read(wait_s) as connection:
            return connection.sql(sql, params=dict(parameters or {}) or None).to_arrow_table()

    def answer(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Answer:
        """Return a query's rows for people; `parameters` as in `query`."""
        with self.read() as connection:
            return answer_of(connection.sql(sql, params=dict(parameters or {}) or None), "values")

    def read_only_user_query(
        self, sql: str, parameters: Mapping[str, Any] | None = None, form: Form = "values"
    ) -> Answer:
        """Return the rows of a query that a person wrote: it can neither write nor reach files or the network.

        Raises QueryError when it does not run, is more than one statement, or its parameters are not those given. A
        statement without rows gives none.
        """
        return self._asked(sql, parameters, lambda relation: answer_of(relation, form))

    def read_only_user_table(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Return the rows of a query that a person wrote with DuckDB's own types; as `read_only_user_query`."""
        return self._asked(
            sql, parameters, lambda relation: pa.table({}) if relation is None else relation.to_arrow_table()
        )

    def _asked(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None,
        take: Callable[[duckdb.DuckDBPyRelation | None], T],
    ) -> T:
        """Return what `take` makes of the rows of a person's query, while the database is open."""
        check_parameters(parameters_of(sql), parameters or {})
        self._ensure(None)
        # An instance of its own: a locked configuration stays locked.
        with self._taking_turns(), closing(_new_instance()) as instance:
            self._attach(instance, True, self.deadline_s)
            instance.execute("USE sdsearch; SET enable_external_access = false; SET lock_configuration = true")
            try:
                return interruptible(instance, lambda: take(instance.sql(sql, params=dict(parameters or {}) or None)))
            except Exception as error:  # Odd values of parameters are refused by other means than DuckDB's own errors.
                if is_broken(error) and not isinstance(error, duckdb.TransactionException):
                    raise DatabaseUnusableError(describe_failure(self.path, error)) from error
                raise query_error(error) from error

    def checkpoint(self, wait_s: float | None = None) -> None:
        """Write what still lies in the log beside the file into the file, so that it can be copied on its own."""
        with self._attached(read_only=False, wait_s=wait_s) as connection:
            _prepare(connection, self.path.as_posix())
            connection.execute("CHECKPOINT sdsearch")

    def close(self) -> None:
        """Let go of this process's in-memory instance."""
        if self._instance is not None:
            self._instance.close()
            self._instance = None

    def _ensure(self, wait_s: float | None) -> None:
        """Make the file and its tables where they are missing; refuse the tables of another version."""
        if self._checked and self.path.exists():
            return
        version = None
        if self.path.exists():
            with self._attached(read_only=True, wait_s=wait_s) as connection:
                version = _version(connection)
        if version is None and self._read_only:
            raise DatabaseUnusableError(
                f"{self.path} has no tables yet; ask again when its run has begun, or {way_out(self.path)}"
            )
        if version is None:
            with self.transaction(wait_s):
                return
        _check_version(version, self.path.as_posix())
        self._checked = True

    @contextmanager
    def _attached(self, read_only: bool, wait_s: float | None) -> Iterator[_Connection]:
        wait_s = self.deadline_s if wait_s is None else wait_s
        with self._taking_turns(wait_s):
            if self._instance is None:
                self._instance = _new_writing_instance()
            self._attach(self._instance, read_only, wait_s)
            try:
                with closing(self._instance.cursor()) as connection:
                    connection.execute("USE sdsearch")
                    yield connection
            except duckdb.Error as error:
                if not is_broken(error):
                    raise
                raise DatabaseUnusableError(describe_failure(self.path, error)) from error
            finally:
                self._detach(self._instance)

    @contextmanager
    def _taking_turns(self, wait_s: float | None = None) -> Iterator[None]:
        """Let one thread of this process use the file at a time."""
        wait_s = self.deadline_s if wait_s is None else wait_s
        if not self._turn.acquire(timeout=wait_s):
            raise DatabaseBusyError(describe_holder(self.path.as_posix(), "", wait_s))
        try:
            with handler_errors_kept():
                yield
        finally:
            self._turn.release()

    def _attach(self, instance: _Connection, read_only: bool, wait_s: float) -> None:
        """Open the file; wait for whoever holds it, at most `wait_s`."""
        quoted = self.path.as_posix().replace("'", "''")
        options = "READ_ONLY" if read_only else f"STORAGE_VERSION '{STORAGE_VERSION}'"
        started, pause = time.monotonic(), wait_exponential(multiplier=0.01, max=0.5)

        def wait(state: RetryCallState) -> float:
            # Waiting processes must not wake in step; seeds of the run have nothing to do with this.
            left_s = wait_s - (time.monotonic() - started)
            return min(pause(state) * random.uniform(0.5, 1.5), max(left_s, 0.0))

        try:
            retrying = Retrying(
                retry=retry_if_exception(_is_held), stop=stop_after_delay(wait_s), wait=wait, reraise=True
            )
            retrying(instance.execute, f"ATTACH '{quoted}' AS sdsearch ({options})")
        except duckdb.Error as error:
            if not _is_held(error):
                raise DatabaseUnusableError(describe_failure(self.path, error, "opened")) from error
            waited_s = time.monotonic() - started
            raise DatabaseBusyError(describe_holder(self.path.as_posix(), str(error), waited_s)) from error

    def _detach(self, instance: _Connection) -> None:
        """Let go of the file, also after an error that DuckDB does not recover from."""
        try:
            instance.execute("DETACH sdsearch")
        except duckdb.Error:
            instance.close()
            self._instance = None


def _is_held(error: BaseException) -> bool:
    """True when another process or connection has the file."""
    return isinstance(error, duckdb.Error) and _BUSY.search(str(error)) is not None


def _new_instance() -> _Connection:
    # Python variables must not be readable as tables by the SQL that people write.
    instance = duckdb.connect(config={"python_enable_replacements": "false"})
    # A checkpoint at every detach costs several syncs; the log is durable and is folded in when it has grown.
    instance.execute("PRAGMA disable_checkpoint_on_shutdown")
    instance.execute(f"SET checkpoint_threshold = '{LOG_SIZE}'")
    return instance


def _new_writing_instance() -> _Connection:
    """An iteration's rows are few: more threads would only take turns, and cost a fifth more."""
    instance = _new_instance()
    instance.execute("SET threads = 1")
    return instance


def _prepare(connection: _Connection, path: str) -> None:
    """Make the tables in a file without any; refuse the tables of another version."""
    version = _version(connection)
    if version is not None:
        _check_version(version, path)
        return
    connection.execute("BEGIN")
    create_tables(connection)
    connection.execute("INSERT INTO workspace VALUES (?, ?)", [SCHEMA_VERSION, datetime.now(UTC).replace(tzinfo=None)])
    connection.execute("COMMIT")
    connection.execute("CHECKPOINT sdsearch")  # Every opening would read the tables' making from the log.


def _version(connection: _Connection) -> int | None:
    try:
        row = connection.execute("SELECT max(schema_version) FROM sdsearch.workspace").fetchone()
    except duckdb.CatalogException:
        return None
    return int(row[0]) if row and row[0] is not None else None


def _check_version(version: int, path: str) -> None:
    if version != SCHEMA_VERSION:
        raise DatabaseUnusableError(
            f"{path} has tables of layout {version}, this program writes layout {SCHEMA_VERSION}; use the program "
            f"that made it, or {way_out(Path(path))}"
        )
